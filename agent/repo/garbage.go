package repo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"varve/layers"
)

// portionMax is how many packs are in memory at a time that may be garbage.
const portionMax = 1 << 18

// A suspect is a pack whose backup is not there, or deleted: another backup
// may need it.
type suspect struct {
	packSize
	modified  time.Time
	moved     bool    // what maps name of it is elsewhere
	lingering bool    // and that is not known long enough
	live      liveSet // what maps name of it, where that is gathered
}

type suspects map[objectID]*suspect

// packs goes through the packs of the repository, and through what may be
// garbage in portions.
func (p *prune) packs(ctx context.Context) error {
	portion := make(suspects)
	for _, prefix := range []string{"p/", "m/"} {
		for info, err := range p.repo.store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list packs: %w", err)
			}
			where, id, ok := parsePack(info.Name)
			if !ok {
				continue
			}
			p.report.Packs.add(info.Size)
			p.noteTarget(id)
			s := &suspect{packSize: packSize{where, id, info.Size}, modified: info.Modified}
			if o := p.owners[id.session()]; o.keeps && !p.emptied(id, o.root.volume) {
				if list, due := p.due[id]; due && o.running {
					p.held[list] = true
				}
				p.considerOwned(s, o)
				continue
			}
			portion[id] = s
			p.progress(0, info.Size)
			if len(portion) == p.portionMax() {
				if err := p.judge(ctx, portion); err != nil {
					return err
				}
				clear(portion)
			}
		}
	}
	return p.judge(ctx, portion)
}

// portionMax is how many packs are judged at a time: fewer, where it is taken
// down what is needed of each.
func (p *prune) portionMax() int {
	if p.repacks() {
		return portionMax / 4
	}
	return portionMax
}

// judge decides about packs: what the backups that are there reach stays, what
// was condemned a grace ago goes, the rest is condemned.
func (p *prune) judge(ctx context.Context, packs suspects) error {
	all, every := bytesOf(packs), suspects(nil)
	if p.repacks() {
		every = maps.Clone(packs)
	}
	if err := p.mark(ctx, p.live, packs, p.repacks()); err != nil {
		return err
	}
	p.progress(all-bytesOf(packs), 0)
	if p.repacks() {
		if err := p.considerAll(ctx, every, packs); err != nil {
			return err
		}
	}
	if err := p.keepUnbacked(ctx, packs); err != nil {
		return err
	}
	going := make(suspects)
	for id, s := range packs {
		if _, due := p.due[id]; due && p.age(s.modified) >= p.options.Grace && !s.lingering {
			going[id] = s
		}
	}
	if err := p.mark(ctx, p.fading, going, false); err != nil {
		return err
	}
	maps.DeleteFunc(going, func(_ objectID, s *suspect) bool { return s.lingering })
	var fresh []packSize
	for id, s := range packs {
		switch {
		case going[id] != nil:
			p.report.Freed.add(s.size)
			continue
		case p.age(s.modified) < p.options.Grace:
			p.report.Young.add(s.size)
		default:
			p.report.Condemned.add(s.size)
			if !p.pending[id] {
				fresh = append(fresh, s.packSize)
			}
		}
		p.progress(s.size, 0)
	}
	if err := p.removePacks(ctx, going); err != nil {
		return err
	}
	return p.condemn(ctx, fresh)
}

func bytesOf(packs suspects) (n int64) {
	for _, s := range packs {
		n += s.size
	}
	return n
}

func (p *prune) removePacks(ctx context.Context, packs suspects) error {
	for batch := range slices.Chunk(slices.Collect(maps.Values(packs)), deleteBatch) {
		names := make([]string, len(batch))
		bytes := int64(0)
		for i, s := range batch {
			names[i] = packName(s.where, s.id)
			bytes += s.size
		}
		if err := p.remove(ctx, names); err != nil {
			return err
		}
		p.progress(bytes, 0)
		for i, s := range batch {
			p.unfree(names[i], s.size)
			p.freed[s.id] = !p.retained[names[i]]
		}
	}
	return nil
}

// condemn writes lists of packs, with the roots that were there.
func (p *prune) condemn(ctx context.Context, packs []packSize) error {
	if p.options.DryRun {
		return nil
	}
	roots := make([]rootName, len(p.roots))
	for i, root := range p.roots {
		roots[i] = root.name
	}
	for part := range slices.Chunk(packs, listPacks) {
		c := &condemned{id: layers.NewID(), packs: part, roots: roots}
		if err := p.repo.store.Put(ctx, listName(c.id), p.repo.sealCondemned(c)); err != nil {
			return fmt.Errorf("write what is condemned: %w", err)
		}
	}
	return nil
}
