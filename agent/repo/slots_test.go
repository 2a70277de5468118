package repo

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// keyFile is the content of a key file.
var keyFile = strings.Repeat("0123456789abcdef", 2)

// keepNothing is for who remembers no key.
func keepNothing(Slot) error { return nil }

func opens(t *testing.T, s object.Store, k Key) error {
	t.Helper()
	r, err := Open(t.Context(), s, k)
	if err == nil {
		r.Close()
	}
	return err
}

func TestSlotKeepsTheMasterKey(t *testing.T) {
	recovery := NewRecoveryKey()
	for _, k := range []Key{{Passphrase: secret}, {KeyFile: keyFile}, {Passphrase: recovery.String()}} {
		s, err := newSlot(fixedID, otherID, k, "étiquette", cheap, fixedKey, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseSlot(s.append(nil))
		if err != nil {
			t.Fatal(err)
		}
		own, _ := k.slotSecret()
		if master, ok := again.open(own); !ok || master != fixedKey {
			t.Errorf("%s: open: %t, %x", s.kind, ok, master)
		}
		for _, other := range []slotSecret{{own.kind, own.text + "x"}, {SlotPassphrase, keyFile}, {SlotKeyFile, secret}, {SlotRecovery, secret}} {
			if _, ok := again.open(other); ok {
				t.Errorf("%s: opens with %q as a %s", s.kind, other.text, other.kind)
			}
		}
		for what, change := range map[string]func(*slot){
			"id": func(s *slot) { s.id[0] ^= 1 }, "repository": func(s *slot) { s.repository[0] ^= 1 },
			"label": func(s *slot) { s.label = "another" }, "MAC": func(s *slot) { s.mac[0] ^= 1 },
			"salt": func(s *slot) { s.salt[0] ^= 1 }, "created": func(s *slot) { s.created = fixedTime },
		} {
			forged := *again
			change(&forged)
			if _, ok := forged.open(own); ok {
				t.Errorf("%s: opens with another %s", s.kind, what)
			}
		}
	}
}

func TestSlotBounds(t *testing.T) {
	s, err := newSlot(fixedID, otherID, Key{Passphrase: secret}, "", cheap, fixedKey, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cost := range []argonCost{{}, {1, 1<<18 + 1, 1}, {17, 64, 1}, {1, 64, 0}, {1, 4, 1}, {1, 64, 17}} {
		s.cost = cost
		if _, err := parseSlot(s.append(nil)); err == nil {
			t.Errorf("a slot that costs %+v is taken", cost)
		}
	}
	for _, file := range []string{"short", strings.Repeat("x", 31), strings.Repeat("x", 64), strings.Repeat("ab", MaxKeyFile)} {
		if _, err := newSlot(fixedID, otherID, Key{KeyFile: file}, "", cheap, fixedKey, layers.ID{}); !errors.Is(err, ErrKey) {
			t.Errorf("a key file of %d bytes: %v", len(file), err)
		}
	}
	for _, label := range []string{strings.Repeat("x", 65), "\xff", otherID.String()} {
		if _, err := newSlot(fixedID, otherID, Key{Passphrase: secret}, label, cheap, fixedKey, layers.ID{}); err == nil {
			t.Errorf("label %q is taken", label)
		}
	}
}

func TestAnySlotOpens(t *testing.T) {
	store := object.NewMem()
	recovery := NewRecoveryKey()
	r, err := Init(t.Context(), store, Key{Passphrase: secret}, Params{cost: cheap, Recovery: recovery})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	file, err := r.AddSlot(t.Context(), Key{KeyFile: keyFile}, "server room")
	if err != nil {
		t.Fatal(err)
	}
	// What another Init left is passed over, and is no slot.
	left, err := newSlot(layers.NewID(), layers.NewID(), Key{Passphrase: "left"}, "", cheap, [32]byte{1}, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), slotName(left.id), left.append(nil)); err != nil {
		t.Fatal(err)
	}
	typed := strings.ToLower(strings.ReplaceAll(recovery.String(), "-", " "))
	keys := []Key{{Passphrase: secret}, {KeyFile: keyFile}, {Passphrase: recovery.String()}, {Passphrase: typed},
		{Passphrase: "wrong", KeyFile: keyFile}, {Passphrase: secret, KeyFile: strings.Repeat("wrong", 9)}, {Passphrase: secret, Slot: file.ID}}
	for _, k := range keys {
		if err := opens(t, store, k); err != nil {
			t.Errorf("open with %+v: %v", k, err)
		}
	}
	for _, k := range []Key{{Passphrase: "left"}, {Passphrase: keyFile}, {KeyFile: keyFile + "\n"}, {Passphrase: NewRecoveryKey().String()}} {
		if err := opens(t, store, k); !errors.Is(err, ErrKey) {
			t.Errorf("open with %+v: %v", k, err)
		}
	}
	mistyped := []byte(recovery.String())
	mistyped[13] = recoveryDigits[(strings.IndexByte(recoveryDigits, mistyped[13])+7)%32]
	if err := opens(t, store, Key{Passphrase: string(mistyped)}); err == nil || !strings.Contains(err.Error(), "group 3") {
		t.Errorf("open with a mistyped recovery key: %v", err)
	}
	slots, err := r.Slots(t.Context())
	if err != nil || len(slots) != 3 {
		t.Fatalf("slots %+v, %v", slots, err)
	}
	if s := slots[0]; s.Kind != SlotPassphrase || !s.InUse || s.ID != r.ID() || s.Damage != nil || s.Created.IsZero() {
		t.Errorf("first slot %+v", s)
	}
	if s := slots[2]; s.ID != file.ID || s.Kind != SlotKeyFile || s.Label != "server room" || s.InUse || s.Damage != nil {
		t.Errorf("last slot %+v", s)
	}
}

func TestSlotThatIsNeededStays(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	first := r.ID()
	if err := r.RemoveSlot(t.Context(), first); !errors.Is(err, ErrSlotNeeded) {
		t.Errorf("remove the only slot: %v", err)
	}
	if err := r.RemoveSlot(t.Context(), layers.NewID()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove a slot that is not there: %v", err)
	}
	second, err := r.AddSlot(t.Context(), Key{Passphrase: "second"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveSlot(t.Context(), first); !errors.Is(err, ErrSlotNeeded) {
		t.Errorf("remove the slot in use: %v", err)
	}
	if _, err := r.Use(t.Context(), Key{Passphrase: "third"}, keepNothing); !errors.Is(err, ErrKey) {
		t.Errorf("use what opens nothing: %v", err)
	}
	if s, err := r.Use(t.Context(), Key{Passphrase: "second", Slot: second.ID}, keepNothing); err != nil || s.ID != second.ID || !s.InUse {
		t.Errorf("use: %+v, %v", s, err)
	}
	if err := r.RemoveSlot(t.Context(), first); err != nil {
		t.Error(err)
	}
	if err := opens(t, store, Key{Passphrase: secret}); !errors.Is(err, ErrKey) {
		t.Errorf("open with a removed passphrase: %v", err)
	}
	if err := opens(t, store, Key{Passphrase: "second"}); err != nil {
		t.Error(err)
	}
	// Somebody removed the one in use: what is left may be the last.
	third, err := r.AddSlot(t.Context(), Key{Passphrase: "third"}, "")
	if err != nil {
		t.Fatal(err)
	}
	store.Delete(t.Context(), slotName(second.ID))
	if err := r.RemoveSlot(t.Context(), third.ID); !errors.Is(err, ErrSlotNeeded) {
		t.Errorf("remove the last slot: %v", err)
	}
	if err := opens(t, store, Key{Passphrase: "third"}); err != nil {
		t.Error(err)
	}
}

func TestHostsThatRemoveEachOthersSlot(t *testing.T) {
	hook := &objecttest.Hook{Store: object.NewMem()}
	one := testRepo(t, hook, true)
	if _, err := one.AddSlot(t.Context(), Key{Passphrase: "two"}, ""); err != nil {
		t.Fatal(err)
	}
	two, err := Open(t.Context(), hook, Key{Passphrase: "two"})
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	// Both have looked, and both delete.
	var nested error
	hook.Before = func(op, name string) error {
		if op == "delete" && name == slotName(two.opened.Load().id) {
			hook.Before = nil
			nested = two.RemoveSlot(context.Background(), one.opened.Load().id)
		}
		return nil
	}
	if err := one.RemoveSlot(t.Context(), two.opened.Load().id); err != nil || nested != nil {
		t.Fatal(err, nested)
	}
	if opens(t, hook, Key{Passphrase: secret}) != nil && opens(t, hook, Key{Passphrase: "two"}) != nil {
		t.Error("nobody can open the repository any more")
	}
}

// Whoever can write to the store puts slots there that cost all the memory and
// time that may be asked for. Opening stays within its bounds; with the slot
// that a daemon remembers it does not even look at them.
func TestForgedSlotsCannotExhaust(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	own, err := r.AddSlot(t.Context(), Key{Passphrase: "own"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		forged := slot{id: layers.ID{0, byte(i), 6: 0x70, 8: 0x80}, repository: r.ID(), kind: SlotPassphrase, label: "office", cost: argonCost{64, 1 << 21, 64}}
		if i%2 == 1 {
			forged.cost = argonCost{1, 1 << 16, 1}
		}
		if err := store.Put(t.Context(), slotName(forged.id), forged.append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	hook := &objecttest.Hook{Store: store, Before: func(op, name string) error {
		if op == "list" {
			t.Error("the daemon's slot was at hand, and others are looked for")
		}
		return nil
	}}
	if err := opens(t, hook, Key{Passphrase: "own", Slot: own.ID}); err != nil {
		t.Error(err)
	}
	trial := newSlotTrial(store, r.head, Key{Passphrase: "none"})
	trial.left = 3 << 16
	for id, err := range listSlots(t.Context(), store) {
		if err != nil {
			t.Fatal(err)
		}
		if err := trial.try(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if !trial.skipped || trial.opened != nil {
		t.Errorf("40 forged slots: skipped %t, opened %v", trial.skipped, trial.opened)
	}
	if err := trial.failure(Key{Passphrase: "none"}); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	// A forged slot is told from ours, and cannot stand in for the last one.
	slots, err := r.Slots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, s := range slots {
		if s.Damage == nil {
			good++
		} else if !errors.Is(s.Damage, ErrCorrupt) {
			t.Error(s.Damage)
		}
	}
	if good != 2 || len(slots) != 42 {
		t.Errorf("%d of %d slots are taken for ours, want 2 of 42", good, len(slots))
	}
	if _, err := r.AddSlot(t.Context(), Key{Passphrase: "x"}, ""); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a slot more than there may be: %v", err)
	}
}

func TestOpenRepositoryHasNoKeys(t *testing.T) {
	r := testRepo(t, object.NewMem(), false)
	_, listed := r.Slots(t.Context())
	_, added := r.AddSlot(t.Context(), Key{Passphrase: "x"}, "")
	_, used := r.Use(t.Context(), Key{Passphrase: "x"}, keepNothing)
	for _, err := range []error{listed, added, used, r.RemoveSlot(t.Context(), r.ID())} {
		if !errors.Is(err, ErrNotEncrypted) {
			t.Errorf("keys of a repository without encryption: %v", err)
		}
	}
}
