package repo

import (
	"errors"
	"io/fs"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A protected backup is deleted by no host that has read the list, until the
// protection ends; nothing of it is left in the store then.
func TestProtect(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v, ctx := newVolume(1<<20), t.Context()
	v.write(0, []byte("data"))
	b, err := v.backup(ctx, r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Protect(ctx, b.ID, true), r.Protect(ctx, b.ID, true)); err != nil {
		t.Fatal(err)
	}
	other, err := Open(ctx, store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, host := range []*Repo{r, other} {
		for got, err := range host.Backups(ctx) {
			if err != nil || !got.Protected {
				t.Errorf("listed: protected %v, %v", got.Protected, err)
			}
		}
		for got := range host.NewBackups(ctx, func(layers.ID, string) bool { return true }) {
			if !got.Protected || got.ID != b.ID {
				t.Errorf("known: %+v", got)
			}
		}
		if err := host.Delete(ctx, b.ID); !errors.Is(err, ErrProtected) {
			t.Errorf("delete: %v, want ErrProtected", err)
		}
	}
	if err := other.Protect(ctx, b.ID, false); err != nil {
		t.Fatal(err)
	}
	for info := range store.List(ctx, volumePrefix(b.Volume)+"h/") {
		t.Errorf("%s is left", info.Name)
	}
	if err := other.Delete(ctx, b.ID); err != nil {
		t.Error(err)
	}
	if err := other.Protect(ctx, b.ID, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("protect what is deleted: %v", err)
	}
	if err := r.Protect(ctx, layers.NewID(), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("protect what never was: %v", err)
	}
}

// Who asks for what is so already writes nothing. What failed is not remembered,
// and what was not seen is not taken for what is not there. // B19
func TestProtectWritesWhatItHasTo(t *testing.T) {
	hook := &objecttest.Hook{Store: object.NewMem()}
	r := testRepo(t, hook, true)
	v, ctx := newVolume(1<<20), t.Context()
	v.write(0, []byte("data"))
	b, err := v.backup(ctx, r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	holds := func() (n int) {
		for range hook.Store.List(ctx, volumePrefix(b.Volume)+"h/") {
			n++
		}
		return n
	}
	for i, on := range []bool{false, true, true, false, false} {
		written := 0
		hook.Before = func(op, name string) error {
			if op == "put" || op == "delete" {
				written++
			}
			return nil
		}
		want := 0
		if on {
			want = 1
		}
		if before := holds(); r.Protect(ctx, b.ID, on) != nil || holds() != want || written != max(before-want, want-before) {
			t.Errorf("step %d: protected %t with %d objects, %d requests that write", i, on, holds(), written)
		}
	}
	for _, on := range []bool{true, false} {
		for _, fails := range []string{"list", "put", "delete"} {
			if hook.Before = nil; r.Protect(ctx, b.ID, !on) != nil {
				t.Fatal(err)
			}
			failed := false
			hook.Before = func(op, name string) error {
				if op != fails {
					return nil
				}
				failed = true
				return errStopped
			}
			err := r.Protect(ctx, b.ID, on)
			known, _ := r.index.find(b.ID)
			if failed != errors.Is(err, errStopped) || known.held != (on != failed) {
				t.Errorf("protect %t, %s fails: %v, it is taken for protected: %t", on, fails, err, known.held)
			}
		}
	}
}
