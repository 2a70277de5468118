package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A keeper is a host that opens a repository with the passphrase that it keeps.
type keeper struct {
	store object.Store
	kept  string
}

// rotate rotates the key of the host, whose store is cut off by cut, which is
// asked before and told after each request.
func (k *keeper) rotate(t *testing.T, to string, cut func(when string) error) ([]layers.ID, error) {
	t.Helper()
	hook := &objecttest.Hook{Store: k.store}
	r := must(Open(t.Context(), hook, Key{Passphrase: k.kept}))(t)
	defer r.Close()
	r.cost = cheap
	hook.Before = func(op, name string) error { return cut("before") }
	hook.After = func(op, name string) error { return cut("after") }
	_, gone, err := r.RotateSlot(t.Context(), layers.ID{}, Key{Passphrase: to}, "", func(s Slot) error {
		if err := opens(t, k.store, Key{Passphrase: to, Slot: s.ID}); err != nil || !s.InUse {
			t.Errorf("kept before it opens: %v; in use: %t", err, s.InUse)
		}
		k.kept = to
		return nil
	})
	return gone, err
}

// wantTold expects that the host opens the repository, and that it is told of
// every key but its recovery key and one other that it was to be replaced. It
// returns how many keys there are.
func (k *keeper) wantTold(t *testing.T, when string) int {
	t.Helper()
	r, err := Open(t.Context(), k.store, Key{Passphrase: k.kept})
	if err != nil {
		t.Fatalf("%s: what is kept opens nothing: %v", when, err)
	}
	defer r.Close()
	slots := must(r.Slots(t.Context()))(t)
	ids, unreplaced := make(map[layers.ID]bool), 0
	for _, s := range slots {
		ids[s.ID] = true
	}
	for _, s := range slots {
		switch {
		case s.Damage != nil:
			t.Errorf("%s: %v", when, s.Damage)
		case s.Kind == SlotRecovery && !s.ReplacedBy.IsZero():
			t.Errorf("%s: the recovery key was to be replaced by %s", when, s.ReplacedBy)
		case s.Kind == SlotRecovery:
		case s.ReplacedBy.IsZero():
			unreplaced++
		case !ids[s.ReplacedBy] || s.ReplacedBy == s.ID:
			t.Errorf("%s: %s was to be replaced by %s, which is not there", when, s.ID, s.ReplacedBy)
		}
	}
	if unreplaced != 1 {
		t.Errorf("%s: %d keys of %d were not to be replaced, want one: %+v", when, unreplaced, len(slots), slots)
	}
	return len(slots)
}

// cutAt lets n requests through and breaks the next one off, before it is done,
// or after it; then nothing goes through.
func cutAt(n int, after bool) func(when string) error {
	broken := false
	return func(when string) error {
		if when == "before" {
			n--
		}
		if n < 0 && (when == "after" || !after) {
			broken = true
		}
		if broken {
			return errStopped
		}
		return nil
	}
}

// A rotation that is cut off at any request, and the next one too: what the host
// keeps opens the repository, whoever opens it is told of each key that should be
// gone and is not, and the rotation that comes to its end leaves none of them.
func TestRotationCutOffAnywhere(t *testing.T) {
	store := object.NewMem()
	recovery := NewRecoveryKey()
	must(Init(t.Context(), store, Key{Passphrase: secret}, Params{cost: cheap, Recovery: recovery}))(t).Close()

	// cuts calls visit with what each cut of a rotation leaves: once for each
	// number of keys and each key that is kept.
	type left struct {
		slots int
		kept  string
	}
	cuts := func(objects map[string][]byte, kept, to string, visit func(when left, objects map[string][]byte)) {
		seen := make(map[left]bool)
		for n, whole := 0, false; !whole; n++ {
			for _, after := range []bool{false, true} {
				k := &keeper{storeOf(t, objects), kept}
				_, err := k.rotate(t, to, cutAt(n, after))
				if err != nil && !errors.Is(err, errStopped) {
					t.Fatal(err)
				}
				whole = err == nil
				l := left{k.wantTold(t, to), k.kept}
				if !seen[l] {
					seen[l] = true
					visit(l, contents(t, k.store))
				}
			}
			if whole && n < 10 {
				t.Errorf("a rotation takes %d requests: too few to try", n)
			}
		}
	}

	var first, second []left
	cuts(contents(t, store), secret, "one", func(l left, objects map[string][]byte) {
		first = append(first, l)
		cuts(objects, l.kept, "two", func(l left, objects map[string][]byte) {
			second = append(second, l)
			k := &keeper{storeOf(t, objects), l.kept}
			gone, err := k.rotate(t, "three", func(string) error { return nil })
			if err != nil || len(gone) != l.slots-1 {
				t.Errorf("the last rotation, of %+v, has removed %v, %v", l, gone, err)
			}
			if n := k.wantTold(t, "three"); n != 2 {
				t.Errorf("%d keys are left, want the new one and the recovery key", n)
			}
			for _, old := range []string{secret, "one", "two"} {
				if err := opens(t, k.store, Key{Passphrase: old}); !errors.Is(err, ErrKey) {
					t.Errorf("%q opens still: %v", old, err)
				}
			}
			if err := opens(t, k.store, Key{Passphrase: recovery.String()}); err != nil {
				t.Error(err)
			}
		})
	})
	if want := []left{{2, secret}, {3, secret}, {3, "one"}, {2, "one"}}; !slices.Equal(first, want) {
		t.Errorf("a rotation that is cut off leaves %v, want %v", first, want)
	}
	if most := (left{4, "two"}); !slices.Contains(second, most) {
		t.Errorf("two rotations that are cut off leave %v, and never %v", second, most)
	}
}

// A rotation that did not see what an earlier one left, since its listing
// lagged, is told of later, and is no obstacle.
func TestRotationBesideALaggingList(t *testing.T) {
	store := object.NewMem()
	must(Init(t.Context(), store, Key{Passphrase: secret}, Params{cost: cheap, Recovery: NewRecoveryKey()}))(t).Close()
	before := contents(t, store)
	k := &keeper{store, secret}
	put := false
	if _, err := k.rotate(t, "one", func(when string) error {
		if put = put || len(contents(t, store)) > len(before); put {
			return errStopped
		}
		return nil
	}); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	k.store = &lagging{store, func(name string) bool { return before[name] == nil }}
	if gone, err := k.rotate(t, "two", func(string) error { return nil }); err != nil || len(gone) != 1 {
		t.Fatalf("%v, %v", gone, err)
	}
	k.store = store
	if n := k.wantTold(t, "after the listing has come"); n != 3 {
		t.Errorf("%d keys, want 3", n)
	}
	if gone, err := k.rotate(t, "three", func(string) error { return nil }); err != nil || len(gone) != 2 {
		t.Errorf("%v, %v", gone, err)
	}
	if n := k.wantTold(t, "in the end"); n != 2 {
		t.Errorf("%d keys, want 2", n)
	}
}

// A slot that was rotated away and is put back is told of. One that is forged is
// tied to none, whatever its salt says, and goes alone.
func TestSlotThatIsPutBack(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.cost = cheap
	old := contents(t, store)[slotName(r.ID())]
	made, _, err := r.RotateSlot(t.Context(), layers.ID{}, Key{Passphrase: "new"}, "", keepNothing)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), slotName(r.ID()), old); err != nil {
		t.Fatal(err)
	}
	forged := must(parseSlot(contents(t, store)[slotName(made.ID)]))(t)
	forged.id, forged.created = otherID, fixedTime
	if err := store.Put(t.Context(), slotName(otherID), forged.append(nil)); err != nil {
		t.Fatal(err)
	}
	for _, s := range must(r.Slots(t.Context()))(t) {
		var want layers.ID
		if s.ID == r.ID() {
			want = made.ID
		}
		if s.ReplacedBy != want || (s.Damage != nil) != (s.ID == otherID) {
			t.Errorf("%+v", s)
		}
	}
	if _, gone, err := r.RotateSlot(t.Context(), otherID, Key{Passphrase: "another"}, "", nil); err != nil || !slices.Equal(gone, []layers.ID{otherID}) {
		t.Errorf("rotate a forged slot: %v, %v", gone, err)
	}
	if err := r.RemoveSlot(t.Context(), r.ID()); err != nil {
		t.Error(err)
	}
	for _, s := range must(r.Slots(t.Context()))(t) {
		if !s.ReplacedBy.IsZero() || s.Damage != nil {
			t.Errorf("%+v", s)
		}
	}
}

func TestRotationOfAnotherSlot(t *testing.T) {
	store := object.NewMem()
	old := NewRecoveryKey()
	r, err := Init(t.Context(), store, Key{Passphrase: secret}, Params{cost: cheap, Recovery: old})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	slots, err := r.Slots(t.Context())
	if err != nil || slots[1].Kind != SlotRecovery {
		t.Fatalf("%+v, %v", slots, err)
	}
	now := Key{Passphrase: NewRecoveryKey().String()}
	s, gone, err := r.RotateSlot(t.Context(), slots[1].ID, now, "safe", nil)
	if err != nil || s.InUse || s.Kind != SlotRecovery || s.Label != "safe" || !slices.Equal(gone, []layers.ID{slots[1].ID}) {
		t.Errorf("%+v, %v, %v", s, gone, err)
	}
	if err := opens(t, store, Key{Passphrase: old.String()}); !errors.Is(err, ErrKey) {
		t.Errorf("open with the old recovery key: %v", err)
	}
	for _, k := range []Key{now, {Passphrase: secret}} {
		if err := opens(t, store, k); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := r.RotateSlot(t.Context(), slots[1].ID, now, "", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rotate a slot that is gone: %v", err)
	}
	// A secret that cannot be kept leaves the old slot, in use.
	failed := errors.New("disk on fire")
	_, _, err = r.RotateSlot(t.Context(), layers.ID{}, Key{KeyFile: keyFile}, "", func(Slot) error { return failed })
	if !errors.Is(err, failed) || r.Slot() != r.ID() || opens(t, store, Key{Passphrase: secret}) != nil {
		t.Errorf("%v; in use %s", err, r.Slot())
	}
	// Another host removes the old one first.
	if _, _, err = r.RotateSlot(t.Context(), s.ID, now, "", nil); err != nil {
		t.Fatal(err)
	}
	_, _, err = r.RotateSlot(t.Context(), layers.ID{}, Key{Passphrase: secret}, "", func(Slot) error {
		return store.Delete(t.Context(), slotName(r.ID()))
	})
	if err != nil || r.Slot() == r.ID() {
		t.Errorf("rotate what another host removes meanwhile: %v", err)
	}
	// Whoever cannot keep the new one may not rotate the one in use.
	before := contents(t, store)
	if _, _, err = r.RotateSlot(t.Context(), r.Slot(), now, "", nil); !errors.Is(err, ErrSlotNeeded) {
		t.Errorf("rotate the slot in use and keep nothing: %v", err)
	}
	if !maps.EqualFunc(before, contents(t, store), bytes.Equal) {
		t.Error("what is refused has changed the store")
	}
}
