package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// checkStones reads the tombstones of the roots that are to go. A backup is
// hidden by the name of a tombstone alone, but is removed only if somebody who
// has the repository's key said so: until then its packs stay.
func (p *prune) checkStones(ctx context.Context) error {
	dead := p.dead[:0:0]
	for _, root := range p.dead {
		name, ok, err := p.rootOf(ctx, p.stones[root.name.backup])
		if err != nil {
			return err
		}
		if ok && name == root.name {
			dead = append(dead, root)
			continue
		}
		p.live[root.name.volume] = append(p.live[root.name.volume], root)
	}
	p.dead = dead
	return nil
}

// rootOf reads the name of the root that a tombstone is for.
func (p *prune) rootOf(ctx context.Context, stone listedStone) (rootName, bool, error) {
	b, err := p.repo.readAll(ctx, stone.name(), maxBody)
	if errors.Is(err, fs.ErrNotExist) {
		return rootName{}, false, nil
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return rootName{}, false, fmt.Errorf("read tombstone: %w", err)
	}
	f, err := p.repo.openBody(b, kindTombstone)
	if err != nil {
		p.keep(damaged(stone.name(), 0, err))
		return rootName{}, false, nil
	}
	root, ok := parseRoot(f.text(bodyRoot))
	if !ok || root.backup != stone.backup {
		p.keep(damaged(stone.name(), 0, fmt.Errorf("it is for the root %q", f.text(bodyRoot))))
		return rootName{}, false, nil
	}
	return root, true, nil
}
