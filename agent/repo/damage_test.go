package repo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// contents reads a whole store.
func contents(t testing.TB, s object.Store) map[string][]byte {
	t.Helper()
	objects := make(map[string][]byte)
	for info, err := range s.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := object.ReadAll(context.Background(), s, info.Name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		objects[info.Name] = b
	}
	return objects
}

// storeOf makes a store of objects.
func storeOf(t testing.TB, objects map[string][]byte) *object.Mem {
	t.Helper()
	s := object.NewMem()
	for name, b := range objects {
		if err := s.Put(context.Background(), name, b); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// sample is a repository with a full backup in packs and leaves of their own,
// and two small increments.
type sample struct {
	objects map[string][]byte
	volume  *volume
	last    layers.ID
	image   []byte
	ids     []layers.ID
}

func newSample(t testing.TB, encrypted bool) *sample {
	store := object.NewMem()
	r := testRepo(t, store, encrypted)
	r.packTarget = 64 << 10
	rnd := newRand(t)
	v := newVolume(768<<10 + 1234)
	for i := range v.bytes[:512<<10] {
		v.bytes[i] = byte(rnd.Uint32() & 0x3f)
	}
	s := &sample{volume: v}
	for range 3 {
		b, err := v.backup(t.Context(), r, s.last)
		if err != nil {
			t.Fatal(err)
		}
		s.last, s.image = b.ID, bytes.Clone(v.bytes)
		s.ids = append(s.ids, b.ID)
		v.forget()
		for range 5 {
			v.write(rnd.Int64N(512<<10), []byte("changed"))
		}
		v.zero(rnd.Int64N(256<<10), 8<<10) // hides blocks, but no whole frame
	}
	showSession(t, r, v.id)
	s.objects = contents(t, store)
	return s
}

// attempt opens the store and restores the last backup, and verifies it.
func (s *sample) attempt(t testing.TB, store object.Store, key Key) (restored []byte, restoreErr, verifyErr error) {
	r, err := Open(t.Context(), store, key)
	if err != nil {
		return nil, err, err
	}
	defer r.Close()
	d := newDisk(len(s.image))
	restoreErr = r.Restore(t.Context(), s.last, d, RestoreOptions{})
	_, verifyErr = r.Verify(t.Context(), s.last, VerifyOptions{Level: Deep})
	return d.bytes, restoreErr, verifyErr
}

// needs reports whether the last backup cannot be whole without an object.
func (s *sample) needs(name string) bool {
	switch {
	case strings.HasPrefix(name, sessionRoot):
		return false
	case strings.Contains(name, "/b/"):
		return strings.HasSuffix(name, s.last.String())
	}
	return true
}

func TestDamageIsFound(t *testing.T) {
	// B15: a flipped bit, a truncated, a missing or a swapped object of any
	// kind is found and named, and never restored.
	for _, encrypted := range []bool{true, false} {
		s := newSample(t, encrypted)
		key := Key{Passphrase: map[bool]string{true: secret}[encrypted]}
		if _, err, verr := s.attempt(t, storeOf(t, s.objects), key); err != nil || verr != nil {
			t.Fatal(err, verr)
		}
		names := make([]string, 0, len(s.objects))
		for name := range s.objects {
			names = append(names, name)
		}
		slices.Sort(names)
		kinds := make(map[string]bool)
		for _, name := range names {
			if !s.needs(name) {
				continue
			}
			kinds[name[:2]+kindInVolume(name)] = true
			for what, broken := range breakages(s, names, name) {
				store := storeOf(t, s.objects)
				if broken == nil {
					store.Delete(t.Context(), name)
				} else if err := store.Put(t.Context(), name, broken); err != nil {
					t.Fatal(err)
				}
				got, restoreErr, verifyErr := s.attempt(t, store, key)
				if verifyErr == nil && !strings.HasPrefix(name, "m/") {
					// A leaf pack may hold leaves that nobody needs any more.
					t.Errorf("encrypted=%t: %s %s: Verify found nothing", encrypted, name, what)
				}
				if restoreErr == nil && !bytes.Equal(got, s.image) {
					t.Errorf("encrypted=%t: %s %s: restored wrong bytes without an error", encrypted, name, what)
				}
				for _, err := range []error{restoreErr, verifyErr} {
					if err != nil && !strings.Contains(err.Error(), name) && !absentIs(err, name) {
						t.Errorf("encrypted=%t: %s %s: the error does not name it: %v", encrypted, name, what, err)
					}
				}
			}
		}
		want := 3 // head, data packs, roots
		if encrypted {
			want = 5 // slots, volume keys
		}
		if len(kinds) < want {
			t.Errorf("encrypted=%t: only kinds %v were tried", encrypted, kinds)
		}
	}
}

func kindInVolume(name string) string {
	if n, ok := parseVolumeName(name); ok {
		return n.kind
	}
	return ""
}

// absentIs accepts the plain sentence about a head or a root that is gone.
func absentIs(err error, name string) bool {
	return name == headName && errors.Is(err, ErrNoRepository) ||
		strings.Contains(name, "/b/") && errors.Is(err, fs.ErrNotExist)
}

// breakages yields ways to damage an object; nil is to remove it.
func breakages(s *sample, names []string, name string) func(func(string, []byte) bool) {
	b := s.objects[name]
	return func(yield func(string, []byte) bool) {
		step := max(1, len(b)/8)
		for at := 0; at < len(b); at += step {
			flipped := bytes.Clone(b)
			flipped[at] ^= 1 << (at % 8)
			if !yield("flipped", flipped) {
				return
			}
		}
		flipped := bytes.Clone(b)
		flipped[len(b)-1] ^= 1
		if !yield("flipped at its end", flipped) || !yield("cut", b[:len(b)/2]) || !yield("cut at its end", b[:len(b)-1]) || !yield("empty", []byte{}) || !yield("missing", nil) {
			return
		}
		for _, other := range names { // another object of the same kind
			if other != name && other[:2] == name[:2] && kindInVolume(other) == kindInVolume(name) && !bytes.Equal(s.objects[other], b) {
				yield("swapped for "+other, s.objects[other])
				return
			}
		}
	}
}

func TestMissingPackIsNotAMissingBackup(t *testing.T) {
	s := newSample(t, true)
	for name := range s.objects {
		if strings.HasPrefix(name, "p/") || strings.HasPrefix(name, "m/") {
			delete(s.objects, name)
		}
	}
	_, err, _ := s.attempt(t, storeOf(t, s.objects), Key{Passphrase: secret})
	if !errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("restore without packs: %v, want ErrCorrupt and not fs.ErrNotExist", err)
	}
}

func TestStoreFailureIsNotDamage(t *testing.T) {
	s := newSample(t, true)
	away := errors.New("network away")
	hook := &objecttest.Hook{Store: storeOf(t, s.objects)}
	r, err := Open(t.Context(), hook, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hook.Before = func(op, name string) error { return away }
	if _, err := l.ReadAt(make([]byte, 4096), 0); !errors.Is(err, away) || errors.Is(err, ErrCorrupt) {
		t.Errorf("read while the store is away: %v", err)
	}
	hook.Before = nil // an error is not kept
	p := make([]byte, 4096)
	if _, err := l.ReadAt(p, 0); err != nil || !bytes.Equal(p, s.image[:4096]) {
		t.Errorf("read once the store is back: %v", err)
	}
}

// TestForeignObjectsHideNothing: what somebody else left among the names of a
// repository, a folder marker or an editor's copy, hides no backup. // C3
func TestForeignObjectsHideNothing(t *testing.T) {
	s := newSample(t, true)
	store := storeOf(t, s.objects)
	root := ""
	for name := range s.objects {
		if kindInVolume(name) == "b" {
			root = name
		}
	}
	if root == "" {
		t.Fatal("the sample has no root")
	}
	for _, name := range []string{"v/foreign", root + ".bak", root[:strings.LastIndex(root, "/")] + "/x", "v/x/b/y"} {
		if err := store.Put(t.Context(), name, []byte("foreign")); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := 0
	for b, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Errorf("backup %s: %v", b.ID, err)
		}
		got++
	}
	if got != len(s.ids) {
		t.Errorf("%d backups listed beside foreign objects, want %d", got, len(s.ids))
	}
}
