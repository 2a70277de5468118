package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/layers"
)

// keyFileOf is a key file of its own for each n: nothing is stretched to try it.
func keyFileOf(n byte) []byte {
	return bytes.Repeat([]byte{n, 'k', 'e', 'y', ' ', 'f', 'i', 'l', 'e', 1, 2, 3, 4, 5, 6, 7}, 2)
}

// opensWith reports whether a key file opens what is in a store.
func opensWith(t *testing.T, s object.Store, file []byte) bool {
	r, err := repo.Open(t.Context(), s, repo.Key{KeyFile: string(file)})
	if err != nil {
		return false
	}
	r.Close()
	return true
}

// copyStore returns what is in a store at this moment.
func copyStore(t *testing.T, from object.Store) object.Store {
	t.Helper()
	to := object.NewMem()
	for info, err := range from.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := object.ReadAll(t.Context(), from, info.Name, 1<<20)
		if err == nil {
			err = to.Put(t.Context(), info.Name, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// wantKeys expects that a daemon's target t has as many keys, and that if more
// than the daemon's and the recovery key are there, all who look are told.
func wantKeys(t *testing.T, a *Agent, when string, want int) {
	t.Helper()
	slots, err := a.TargetKeys(t.Context(), "t")
	if err != nil {
		t.Fatalf("%s: the daemon's own secret does not open the target: %v", when, err)
	}
	told := 0
	for _, s := range slots {
		if !s.ReplacedBy.IsZero() {
			told++
		}
	}
	warnings := 0
	for _, text := range must(a.Status(t.Context()))(t).Warnings {
		if strings.Contains(text, "The rotation of a key of target t was cut off") {
			warnings++
		}
	}
	if len(slots) != want || told != want-2 || warnings != want-2 {
		t.Errorf("%s: %d keys, %d to be replaced, %d warnings; want %d keys, and of all but two that they were to be replaced", when, len(slots), told, warnings, want)
	}
	if d := must(a.DescribeTarget(t.Context(), "t"))(t); !slices.Equal(d.Keys, slots) {
		t.Errorf("%s: the target is described with %+v, want %+v", when, d.Keys, slots)
	}
}

// The daemon dies before any request of a rotation, or loses the network there:
// its own secret opens the target, a key that should be gone and is not is told
// of in the log, the status and the target's description, and the next rotation
// leaves one key and the recovery key.
func TestRotationCutOff(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	target := must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), KeyFile: keyFileOf(0)}))(t)
	state, store, s := copyState(t, dir), copyStore(t, w.store(url("t")).Store), w.store(url("t"))
	type moment struct {
		request string // that did not happen any more
		secret  string
		store   object.Store
	}
	var moments []moment
	note := func(_ context.Context, op, name string) error {
		moments = append(moments, moment{op + " " + name, secretsOf(t, dir, target.ID), copyStore(t, s.Store)})
		return nil
	}
	s.on(note)
	made := must(a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{KeyFile: keyFileOf(1)}))(t)
	s.on(nil)
	if want := []layers.ID{target.RepositoryID}; !slices.Equal(made.Replaced, want) {
		t.Errorf("replaced %v, want %v", made.Replaced, want)
	}
	wantKeys(t, a, "in the end", 2)
	if len(moments) < 10 {
		t.Errorf("%d moments", len(moments))
	}

	states := map[string]bool{} // of those that follow one another most are alike
	for n, m := range moments {
		cutOffFromTheNetwork(t, state, copyStore(t, store), n)
		old, fresh := opensWith(t, m.store, keyFileOf(0)), opensWith(t, m.store, keyFileOf(1))
		left := fmt.Sprintf("old key: %t, new key: %t, kept: %s", old, fresh, m.secret)
		if states[left] {
			continue
		}
		states[left] = true
		keys := 2
		if old && fresh {
			keys = 3
		}
		w := newWorld(t)
		died := filepath.Join(t.TempDir(), "state")
		if err := os.CopyFS(died, os.DirFS(state)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(died, "secrets", target.ID.String()), []byte(m.secret), 0o600); err != nil {
			t.Fatal(err)
		}
		w.store(url("t")).Store = m.store
		b := w.start(died)
		if err := b.SyncTarget(t.Context(), "t"); err != nil {
			t.Fatalf("killed before %s: the daemon's own secret does not open the target: %v", m.request, err)
		}
		if told := strings.Count(w.logged(), "was cut off"); told != keys-2 {
			t.Errorf("killed before %s: %d keys, and %d lines in the log after a sync", m.request, keys, told)
		}
		wantKeys(t, b, "killed before "+m.request, keys)
		if told := strings.Count(w.logged(), "was cut off"); told != keys-2 {
			t.Errorf("killed before %s: told %d times in the log", m.request, told)
		}
		rotated, err := b.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{KeyFile: keyFileOf(2)})
		if err != nil || len(rotated.Replaced) != keys-1 {
			t.Errorf("killed before %s: rotated again: %v, %v", m.request, rotated.Replaced, err)
		}
		b.Close()
		b = w.start(died)
		wantKeys(t, b, "killed before "+m.request+", rotated again", 2)
		if opensWith(t, m.store, keyFileOf(0)) || opensWith(t, m.store, keyFileOf(1)) {
			t.Errorf("killed before %s: an old key opens after the next rotation", m.request)
		}
		b.Close()
	}
	if want := 4; len(states) != want { // before, with both and either kept, after
		t.Errorf("%d states between before and after, want %d", len(states), want)
	}
}

// cutOffFromTheNetwork rotates a key, and the n-th request and all that follow do
// not reach the store.
func cutOffFromTheNetwork(t *testing.T, state string, store object.Store, n int) {
	t.Helper()
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(dir, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	s := w.store(url("t"))
	s.Store = store
	a := w.start(dir)
	wantKeys(t, a, "at first", 2)
	cut, left := "", n
	s.on(func(_ context.Context, op, name string) error {
		if left--; left < 0 {
			if cut == "" {
				cut = op + " " + name
			}
			return errFault
		}
		return nil
	})
	_, err := a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{KeyFile: keyFileOf(1)})
	s.on(nil)
	keys := 2
	if old, fresh := opensWith(t, store, keyFileOf(0)), opensWith(t, store, keyFileOf(1)); old && fresh {
		keys = 3
		wantError(t, err, Unavailable, "beside the old one")
	}
	if logged := strings.Contains(w.logged(), "did not come to its end"); (err != nil) != logged {
		t.Errorf("cut off at %s: %v, and the log says so: %t", cut, err, logged)
	}
	wantKeys(t, a, "cut off at "+cut, keys)
	must(a.RotateTargetKey(t.Context(), "t", layers.ID{}, NewKey{KeyFile: keyFileOf(2)}))(t)
	wantKeys(t, a, "cut off at "+cut+", rotated again", 2)
	a.Close()
}

// A client that goes away in the middle does not cut a rotation off.
func TestRotationOutlastsItsClient(t *testing.T) {
	w := newWorld(t)
	a := w.start(t.TempDir())
	must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), KeyFile: keyFileOf(0)}))(t)
	ctx, gone := context.WithCancel(t.Context())
	w.store(url("t")).on(func(ctx context.Context, op, name string) error {
		gone()
		return ctx.Err()
	})
	must(a.RotateTargetKey(ctx, "t", layers.ID{}, NewKey{KeyFile: keyFileOf(1)}))(t)
	wantKeys(t, a, "after the client has gone", 2)
}

// What the disk has of the daemon's secret counts, if it failed while the secret
// was written and the daemon does not know whether it is there.
func TestSlotOfTheKeptSecretStays(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	target := must(a.AddTarget(t.Context(), NewTarget{Name: "t", URL: url("t"), KeyFile: keyFileOf(0)}))(t)
	other := must(a.AddTargetKey(t.Context(), "t", NewKey{KeyFile: keyFileOf(1)}))(t)
	if err := a.writeSecrets(target.ID, secrets{KeyFile: keyFileOf(1), Slot: other.ID.String()}); err != nil {
		t.Fatal(err)
	}
	wantError(t, a.RemoveTargetKey(t.Context(), "t", other.ID), InUse)
	if err := a.RemoveTargetKey(t.Context(), "t", target.RepositoryID); err != nil {
		t.Error(err)
	}
	a.Close()
	wantKeys(t, w.start(dir), "started again", 2)
}
