package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"varve/layers"
)

// A rotation makes the new slot before it removes the old one, so one that is
// cut off leaves both, and both open. So that this can be seen, and ended, by
// whoever opens the repository next, the new slot says from its first instant
// on which slot it was made to replace: in its salt, of which 16 random bytes
// are enough (RFC 9106, section 3.1). A rotation is over when what the new slot
// replaces is gone; nothing else has to be written.

// saltRandom is how many bytes of a salt are always random. The mark is behind.
const saltRandom = 16

// A slotMark stands for a slot that was replaced. Who does not have the master
// key cannot tell it from chance.
type slotMark [32 - saltRandom]byte

func markOf(master [32]byte, old layers.ID) slotMark {
	key := kdf("slot replaced", master[:], old[:])
	return slotMark(key[:])
}

// mark is what markOf said when the slot was made; chance, if it replaced none.
func (s *slot) mark() slotMark { return slotMark(s.salt[saltRandom:]) }

// replaces reports whether s was made to replace old, or after it to replace
// the same slot: then a listing that lagged hid old from the later rotation, or
// two hosts have rotated one slot at the same time.
func (s *slot) replaces(old *slot, master [32]byte) bool {
	return s.mark() == markOf(master, old.id) || s.mark() == old.mark() && s.after(old)
}

// after orders slots by age, on every host alike.
func (s *slot) after(o *slot) bool {
	if c := s.created.Compare(o.created); c != 0 {
		return c > 0
	}
	return slices.Compare(s.id[:], o.id[:]) > 0
}

// genuine returns the slots that this repository's own made.
func (r *Repo) genuine(all []*slot) []*slot {
	return slices.DeleteFunc(slices.Clone(all), func(s *slot) bool { return !s.genuine(r.keys.master) })
}

// replacement returns the youngest of the genuine slots that replace old; nil if
// there is none, or old is none of them.
func (r *Repo) replacement(own []*slot, old *slot) (by *slot) {
	if !slices.Contains(own, old) {
		return nil
	}
	for _, s := range own {
		if s.replaces(old, r.keys.master) && (by == nil || s.after(by)) {
			by = s
		}
	}
	return by
}

// tied returns a slot and those that rotations which were cut off have left
// beside it: what it replaces and what replaces it, then what those do. So each
// but the first is tied to one before it. One that is not genuine is alone.
func (r *Repo) tied(own []*slot, first *slot) []*slot {
	family := []*slot{first}
	if !slices.Contains(own, first) {
		return family
	}
	for i := 0; i < len(family); i++ {
		for _, s := range own {
			if (s.replaces(family[i], r.keys.master) || family[i].replaces(s, r.keys.master)) && !slices.Contains(family, s) {
				family = append(family, s)
			}
		}
	}
	return family
}

// RotateSlot replaces the secret of a key slot: it makes a slot that k opens,
// calls keep once that does, which keeps k where it is needed, and removes the
// old slot, with whatever rotations of it that were cut off have left. It
// returns the new slot and the IDs of those that are gone.
//
// The zero ID means the slot in use. If that goes, the new one becomes it;
// without keep (nil) this is refused with ErrSlotNeeded.
//
// After an error, or a crash, what keep kept last opens. If the new slot is
// there beside the old one then, Slots says so, and the next rotation of either
// removes both.
func (r *Repo) RotateSlot(ctx context.Context, old layers.ID, k Key, label string, keep func(Slot) error) (Slot, []layers.ID, error) {
	s, gone, err := r.rotateSlot(ctx, old, k, label, keep)
	if err != nil {
		return Slot{}, nil, fmt.Errorf("rotate key slot: %w", err)
	}
	return s, gone, nil
}

func (r *Repo) rotateSlot(ctx context.Context, old layers.ID, k Key, label string, keep func(Slot) error) (Slot, []layers.ID, error) {
	found, broken, err := r.readSlots(ctx)
	if err != nil {
		return Slot{}, nil, err
	}
	inUse := r.opened.Load().id
	if old.IsZero() {
		old = inUse
	}
	gone, oldLabel, err := r.goneWith(found, broken, old)
	if err == nil {
		err = checkRoom(len(found) + len(broken))
	}
	if err != nil {
		return Slot{}, nil, err
	}
	goesOver := slices.Contains(gone, inUse)
	if goesOver && keep == nil {
		return Slot{}, nil, fmt.Errorf("%w: the repository was opened with it", ErrSlotNeeded)
	}
	made, err := newSlot(layers.NewID(), r.head.id, k, cmp.Or(label, oldLabel), r.cost, r.keys.master, old)
	if err != nil {
		return Slot{}, nil, err
	}
	if err := r.putSlot(ctx, made); err != nil {
		return Slot{}, nil, besides(err, made.id, old)
	}
	d := r.describeSlot(made)
	d.InUse = goesOver
	err = r.proveSlot(ctx, made.id, k)
	if err == nil && keep != nil {
		err = keep(d)
	}
	if err == nil {
		if goesOver {
			r.opened.Store(made)
		}
		err = r.removeTied(ctx, gone)
	}
	if err != nil {
		return Slot{}, nil, besides(err, made.id, old)
	}
	return d, gone, nil
}

// besides adds to the error of a rotation what it may have left.
func besides(err error, made, old layers.ID) error {
	return fmt.Errorf("%w; the new slot %s may be there beside the old one, %s, and both open then, until one of them is rotated again", err, made, old)
}

// goneWith returns the slots that go when old is rotated, itself first, and its
// label. One that nobody can read may be rotated too.
func (r *Repo) goneWith(found []*slot, broken []Slot, old layers.ID) (gone []layers.ID, label string, err error) {
	for _, s := range found {
		if s.id != old {
			continue
		}
		for _, near := range r.tied(r.genuine(found), s) {
			gone = append(gone, near.id)
		}
		return gone, s.label, nil
	}
	if slices.ContainsFunc(broken, func(s Slot) bool { return s.ID == old }) {
		return []layers.ID{old}, "", nil
	}
	return nil, "", fmt.Errorf("%s: %w", old, fs.ErrNotExist)
}

// proveSlot makes sure that k opens the slot, and that it keeps our master key.
func (r *Repo) proveSlot(ctx context.Context, id layers.ID, k Key) error {
	t := newSlotTrial(r.store, r.head, k)
	if err := t.try(ctx, id); err != nil {
		return err
	}
	switch {
	case t.opened == nil:
		return t.failure(k)
	case t.master != r.keys.master:
		return damaged(slotName(id), 0, errAnotherMaster)
	}
	return nil
}

// removeTied removes slots that are tied to one that stays, the last one first:
// so those that a crash leaves are still tied to it. One that is gone is gone.
func (r *Repo) removeTied(ctx context.Context, ids []layers.ID) error {
	for _, id := range slices.Backward(ids) {
		if err := r.RemoveSlot(ctx, id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
