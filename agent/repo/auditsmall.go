package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"varve/agent/object"
	"varve/layers"
)

// checkSmall reads the objects that are not of one backup: key slots and
// volume keys; from Map on also sessions, claims, tombstones, holds, captions,
// lists and relocations.
func (a *audit) checkSmall(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreFetches)
	for _, prefix := range []string{slotPrefix, sessionRoot, listRoot, volumesRoot} {
		for info, err := range a.repo.store.List(ctx, prefix) {
			if err != nil {
				return errors.Join(fmt.Errorf("list %s: %w", prefix, err), g.Wait())
			}
			if limit, parse := a.smallObject(info.Name); parse != nil {
				g.Go(func() error { return a.checkOne(ctx, info, limit, parse) })
			}
		}
	}
	return g.Wait()
}

// smallObject returns what reads the object of that name, and how long it is at
// most; nil if it is not to be read here.
func (a *audit) smallObject(name string) (limit int64, parse func([]byte) error) {
	r := a.repo
	n, _ := parseVolumeName(name)
	body := func(kind objectKind, backup layers.ID, number int64) func([]byte) error {
		return func(b []byte) error {
			f, err := r.openBody(b, kind)
			if err != nil {
				return err
			}
			id, err1 := f.id(bodyBackup)
			volume, err2 := f.id(bodyVolume)
			at, err3 := f.number(bodyNumber)
			switch err := errors.Join(err1, err2, err3); {
			case err != nil:
				return err
			case id != backup || at != number:
				return fmt.Errorf("it is of backup %s, number %d", id, at)
			case n.kind != "" && volume != n.volume:
				return fmt.Errorf("it is of volume %s", volume)
			}
			return nil
		}
	}
	if id, ok := parseSlotName(name); ok && r.Encrypted() {
		return slotLimit, func(b []byte) error { return r.checkSlot(b, id) }
	}
	if ref, ok := n.key(); ok && r.Encrypted() {
		return wrappedSize, func(b []byte) error {
			_, err := r.keys.unwrap(b, ref)
			return err
		}
	}
	if a.options.Level < Map {
		return 0, nil
	}
	if _, _, ok := parseRelocationName(name); ok {
		return relocationLimit, func(b []byte) error {
			_, err := r.parseRelocation(name, b)
			return err
		}
	}
	if id, ok := parseList(name); ok {
		return maxList, func(b []byte) error {
			c, err := r.openCondemned(b)
			if err == nil && c.id != id {
				err = fmt.Errorf("it is list %s", c.id)
			}
			return err
		}
	}
	if claim, ok := n.claim(); ok {
		return maxBody, func(b []byte) error {
			_, err := r.openClaim(b, claim)
			return err
		}
	}
	if id, ok := n.tombstone(); ok {
		return maxBody, body(kindTombstone, id, 0)
	}
	if id, ok := n.hold(); ok {
		return maxBody, body(kindHold, id, 0)
	}
	if caption, ok := n.caption(); ok {
		return maxBody, func(b []byte) error {
			_, err := r.openCaption(b, caption)
			return err
		}
	}
	if id, number, ok := parseSession(name); ok {
		return maxBody, body(kindSession, id, number)
	}
	return 0, nil
}

// maxBody is more than a session or a tombstone takes.
const maxBody = 64 << 10

// checkOne reads an object as long as a listing has it, which is far less than
// it may have; all that it may have, if it goes on.
func (a *audit) checkOne(ctx context.Context, listed object.Info, limit int64, parse func([]byte) error) error {
	b, err := a.repo.readAll(ctx, listed.Name, min(listed.Size, limit))
	if errors.Is(err, ErrCorrupt) && listed.Size < limit {
		b, err = a.repo.readAll(ctx, listed.Name, limit)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since
	}
	if err == nil {
		if err = parse(b); err != nil {
			err = damaged(listed.Name, 0, err)
		}
	}
	_, err = a.note(err)
	return err
}
