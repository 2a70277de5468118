package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// A Slot is a key slot as it is shown.
type Slot struct {
	ID      layers.ID
	Kind    SlotKind
	Label   string // for people
	Created time.Time
	InUse   bool  // the repository was opened with it
	Damage  error // why it opens nothing; nil: nothing is known against it

	// ReplacedBy is the slot that was made to replace this one, in a rotation
	// that was cut off: both open the repository. Zero: none is there.
	ReplacedBy layers.ID
}

var (
	// ErrNotEncrypted means that a repository without encryption has no keys.
	ErrNotEncrypted = errors.New("the repository is not encrypted, so there are no keys")
	// ErrSlotNeeded means that without this key slot the repository might
	// never be opened again.
	ErrSlotNeeded = errors.New("the key slot is needed")
)

const (
	// maxSlots is how many key slots a repository may have. Guessing at that
	// many of ours is within maxStretch.
	maxSlots = 20
	// maxSlotReads bounds what is read below k/, where somebody may have put
	// anything.
	maxSlotReads = 64
)

// unlock finds the slot that the key opens. It tries the one that the key
// names; then the first, which has the repository's ID; then what a listing,
// which may lag, shows.
func unlock(ctx context.Context, s object.Store, h *head, k Key) (master [32]byte, opened *slot, err error) {
	t := newSlotTrial(s, h, k)
	for _, id := range []layers.ID{k.Slot, h.id} {
		if err := t.try(ctx, id); err != nil || t.opened != nil {
			return t.master, t.opened, err
		}
	}
	for id, err := range listSlots(ctx, s) {
		if err != nil {
			return master, nil, err
		}
		if err := t.try(ctx, id); err != nil || t.opened != nil {
			return t.master, t.opened, err
		}
	}
	return master, nil, t.failure(k)
}

// A slotTrial tries a key on one slot after the other.
type slotTrial struct {
	store   object.Store
	head    *head
	secrets []slotSecret
	seen    map[layers.ID]bool
	read    int   // slots that could be read
	left    int64 // argon2id that is still allowed, in KiB times passes
	damage  error
	skipped bool // a slot that would cost too much

	master [32]byte
	opened *slot
}

func newSlotTrial(s object.Store, h *head, k Key) *slotTrial {
	return &slotTrial{store: s, head: h, secrets: k.secrets(), left: maxStretch, seen: make(map[layers.ID]bool)}
}

// try reads a slot and tries the key on it. Errors are those of the store.
func (t *slotTrial) try(ctx context.Context, id layers.ID) error {
	if id.IsZero() || t.seen[id] {
		return nil
	}
	t.seen[id] = true
	s, err := readSlot(ctx, t.store, t.head, id)
	switch {
	case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion):
		t.damage = errors.Join(t.damage, err)
		return nil
	case err != nil || s == nil:
		return err
	}
	t.read++
	for _, secret := range t.secrets {
		if secret.kind != s.kind {
			continue
		}
		if s.kind == SlotPassphrase {
			if t.left -= s.cost.total(); t.left < 0 {
				t.skipped = true
				continue
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if master, ok := s.open(secret); ok {
			t.master, t.opened = master, s
			return nil
		}
	}
	return nil
}

// failure says why no slot opened.
func (t *slotTrial) failure(k Key) error {
	what := "the passphrase opens none"
	switch {
	case k.Passphrase == "":
		what = "the key file opens none"
	case k.KeyFile != "":
		what = "neither the passphrase nor the key file opens one"
	}
	_, typo := ParseRecoveryKey(k.Passphrase)
	switch {
	case t.read == 0 && t.damage != nil:
		return t.damage
	case t.read == 0:
		return damaged(slotName(t.head.id), 0, errors.New("the object is missing, and so are all other key slots"))
	case t.damage != nil:
		return fmt.Errorf("%w: %s of the key slots that can be read: %w", ErrKey, what, t.damage)
	case t.skipped:
		return fmt.Errorf("%w: %s of the key slots that were tried; others ask for more work than %d slots of this program would: somebody may have put them there", ErrKey, what, maxSlots)
	case k.Passphrase != "" && !errors.Is(typo, errNoRecoveryKey) && typo != nil:
		return fmt.Errorf("%w: %s of the key slots; if a recovery key was meant: %w", ErrKey, what, typo)
	}
	return fmt.Errorf("%w: %s of the key slots; check it, and that this is the right repository", ErrKey, what)
}

// listSlots yields the IDs of the objects that are named as slots.
func listSlots(ctx context.Context, s object.Store) func(func(layers.ID, error) bool) {
	return func(yield func(layers.ID, error) bool) {
		n := 0
		for info, err := range s.List(ctx, slotPrefix) {
			if err != nil {
				yield(layers.ID{}, fmt.Errorf("list key slots: %w", err))
				return
			}
			id, ok := parseSlotName(info.Name)
			if !ok {
				continue
			}
			if n++; n > maxSlotReads || !yield(id, nil) {
				return
			}
		}
	}
}

// readSlot returns nil for a slot that was removed, or left over by another
// Init.
func readSlot(ctx context.Context, s object.Store, h *head, id layers.ID) (*slot, error) {
	name := slotName(id)
	b, err := readLimited(ctx, s, name, slotLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key slot: %w", err)
	}
	slot, err := parseSlot(b)
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	switch {
	case slot.repository != h.id:
		return nil, nil
	case slot.id != id:
		return nil, damaged(name, 0, fmt.Errorf("it is slot %s", slot.id))
	}
	return slot, nil
}

// Slots returns the key slots, oldest first. One that was forged is returned
// with Damage, since it opens nothing; one that is damaged has nothing else.
func (r *Repo) Slots(ctx context.Context) ([]Slot, error) {
	found, all, err := r.readSlots(ctx)
	if err != nil {
		return nil, err
	}
	own := r.genuine(found)
	for _, s := range found {
		d := r.describeSlot(s)
		if by := r.replacement(own, s); by != nil {
			d.ReplacedBy = by.id
		}
		all = append(all, d)
	}
	slices.SortStableFunc(all, func(a, b Slot) int { return a.Created.Compare(b.Created) })
	return all, nil
}

// readSlots returns the slots that can be read, forged ones too, and those that
// cannot, with Damage.
func (r *Repo) readSlots(ctx context.Context) (found []*slot, broken []Slot, err error) {
	if !r.Encrypted() {
		return nil, nil, ErrNotEncrypted
	}
	own := r.opened.Load()
	ids := []layers.ID{own.id, r.head.id}
	for id, err := range listSlots(ctx, r.store) {
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, id)
	}
	seen := make(map[layers.ID]bool)
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		s, err := readSlot(ctx, r.store, r.head, id)
		switch {
		case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion):
			broken = append(broken, Slot{ID: id, Damage: err, InUse: id == own.id})
		case err != nil:
			return nil, nil, err
		case s != nil:
			found = append(found, s)
		}
	}
	return found, broken, nil
}

func (r *Repo) describeSlot(s *slot) Slot {
	d := Slot{ID: s.id, Kind: s.kind, Label: s.label, Created: s.created, InUse: s.id == r.opened.Load().id}
	if !s.genuine(r.keys.master) {
		d.Damage = damaged(slotName(s.id), 0, errForged)
	}
	return d
}

// checkSlot says what is wrong with the object of a key slot. One that is left
// over from another repository is nobody's damage.
func (r *Repo) checkSlot(b []byte, id layers.ID) error {
	s, err := parseSlot(b)
	switch {
	case err != nil:
		return err
	case s.repository != r.head.id:
		return nil
	case s.id != id:
		return fmt.Errorf("it is slot %s", s.id)
	case !s.genuine(r.keys.master):
		return errForged
	}
	return nil
}

// errForged means that a slot opens nothing, or another repository.
var errForged = errors.New("it was not made by anybody who has the repository's key")

// AddSlot makes a key slot that k opens, and returns it once it is durable. The
// key is a passphrase, a key file or the text of a recovery key.
func (r *Repo) AddSlot(ctx context.Context, k Key, label string) (Slot, error) {
	found, broken, err := r.readSlots(ctx)
	if err == nil {
		err = checkRoom(len(found) + len(broken))
	}
	var s *slot
	if err == nil {
		s, err = newSlot(layers.NewID(), r.head.id, k, label, r.cost, r.keys.master, layers.ID{})
	}
	if err == nil {
		err = r.putSlot(ctx, s)
	}
	if err != nil {
		return Slot{}, fmt.Errorf("add key slot: %w", err)
	}
	return r.describeSlot(s), nil
}

// checkRoom refuses one slot more than there may be.
func checkRoom(slots int) error {
	if slots >= maxSlots {
		return fmt.Errorf("%w: there are %d key slots, as many as may be; remove one first", fs.ErrExist, slots)
	}
	return nil
}

// putSlot writes a slot and looks whether it is there. After an error it may be.
func (r *Repo) putSlot(ctx context.Context, s *slot) error {
	object := s.append(nil)
	if err := r.store.Put(ctx, slotName(s.id), object); err != nil {
		return err
	}
	found, err := r.readAll(ctx, slotName(s.id), slotLimit)
	if err == nil && !bytes.Equal(found, object) {
		err = damaged(slotName(s.id), 0, errors.New("it is not what was written a moment ago"))
	}
	return err
}

// newSlot wraps the master key for k, in the place of the slot old; the zero ID
// is none.
func newSlot(id, repository layers.ID, k Key, label string, cost argonCost, master [32]byte, old layers.ID) (*slot, error) {
	secret, err := k.slotSecret()
	if err != nil {
		return nil, err
	}
	if _, err := layers.ParseID(label); err == nil {
		return nil, fmt.Errorf("%q would be taken for the ID of a key slot: choose another label", label)
	}
	s := &slot{id: id, repository: repository, kind: secret.kind, label: label, created: time.Now()}
	if s.kind == SlotPassphrase {
		s.cost = cost
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	s.wrap(secret, master, old)
	return s, nil
}

// Use goes over to the slot that k opens, once keep has kept k where it is
// needed: the one in use can be removed after that. Errors: ErrKey, those of the
// store, and keep's; after one the slot in use is what it was.
func (r *Repo) Use(ctx context.Context, k Key, keep func(Slot) error) (Slot, error) {
	if !r.Encrypted() {
		return Slot{}, ErrNotEncrypted
	}
	master, s, err := unlock(ctx, r.store, r.head, k)
	if err != nil {
		return Slot{}, err
	}
	if master != r.keys.master {
		return Slot{}, damaged(slotName(s.id), 0, errAnotherMaster)
	}
	d := r.describeSlot(s)
	d.InUse = true
	if err := keep(d); err != nil {
		return Slot{}, err
	}
	r.opened.Store(s)
	return d, nil
}

var errAnotherMaster = errors.New("it keeps another key than the repository's")

// RemoveSlot removes a key slot: what opened it opens nothing any more. It is no
// remedy for a master key that somebody has read already. The slot in use is
// refused with ErrSlotNeeded, which also keeps the last one; one that is not
// there is fs.ErrNotExist.
//
// Two hosts that use different slots may remove each other's at the same time.
// So each looks after its own when it is done, and puts it back.
func (r *Repo) RemoveSlot(ctx context.Context, id layers.ID) error {
	if !r.Encrypted() {
		return ErrNotEncrypted
	}
	if err := r.removeSlot(ctx, id); err != nil {
		return fmt.Errorf("remove key slot %s: %w", id, err)
	}
	return nil
}

func (r *Repo) removeSlot(ctx context.Context, id layers.ID) error {
	own := r.opened.Load()
	if id == own.id {
		return fmt.Errorf("%w: it is the one that the repository was opened with", ErrSlotNeeded)
	}
	there, err := r.hasSlot(ctx, own)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("%w: slot %s, which the repository was opened with, is gone meanwhile, so this may be the last; open it with another key", ErrSlotNeeded, own.id)
	}
	var p [1]byte
	if _, err := r.store.Get(ctx, slotName(id), p[:], 0); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, slotName(id)); err != nil {
		return err
	}
	if there, err = r.hasSlot(ctx, own); err != nil || there {
		return err
	}
	if err := r.store.Put(ctx, slotName(own.id), own.append(nil)); err != nil {
		return fmt.Errorf("put back slot %s, which is in use and was removed at the same time: %w", own.id, err)
	}
	return nil
}

// hasSlot reports whether a slot is in the store as it was.
func (r *Repo) hasSlot(ctx context.Context, s *slot) (bool, error) {
	found, err := readSlot(ctx, r.store, r.head, s.id)
	switch {
	case errors.Is(err, ErrCorrupt):
		return false, nil
	case err != nil:
		return false, err
	}
	return found != nil && found.genuine(r.keys.master), nil
}
