package repo

import (
	"testing"
	"testing/synctest"
	"time"

	"varve/layers"
)

// distant is a store that is a second away. In a bubble the seconds that
// something takes are the requests of it that wait for one another, with those
// for keys, slots and tombstones.
func distant(t *testing.T, s *sample) *counted {
	c := countRequests(storeOf(t, s.objects))
	note := c.Before
	c.Before = func(op, name string) error {
		time.Sleep(time.Second)
		return note(op, name)
	}
	return c
}

// A cold first byte takes three requests after one another, a later miss one;
// from nothing at all it takes seven.
func TestDependentRequests(t *testing.T) {
	s := newSample(t, true)
	synctest.Test(t, func(t *testing.T) {
		c := distant(t, s)
		trips := func(what string, want time.Duration, act func() error) {
			t.Helper()
			began := time.Now()
			if err := act(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := time.Since(began) / time.Second; got != want {
				t.Errorf("%s takes %d requests after one another, want %d: %q", what, got, want, c.take())
			}
			c.take()
		}
		var r *Repo
		trips("opening the repository", 2, func() (err error) { // head, slot
			r, err = Open(t.Context(), c, Key{Passphrase: secret})
			return err
		})
		defer r.Close()
		trips("a list of the backups", 2, func() error { // names; roots, and their keys beside them
			for _, err := range r.Backups(t.Context()) {
				if err != nil {
					return err
				}
			}
			return nil
		})
		var l *Layer
		p := make([]byte, layers.BlockSize)
		trips("the first byte of a backup", 3, func() (err error) { // root, leaves, frame
			if l, err = r.Layer(t.Context(), s.last); err == nil {
				_, err = l.ReadAt(p[:1], 0)
			}
			return err
		})
		defer l.Close()
		trips("what is there", 0, func() error {
			_, err := l.ReadAt(p[:100], 1)
			return err
		})
		trips("the next miss", 1, func() error {
			_, err := l.ReadAt(p, 300<<10)
			return err
		})
	})
}

// Roots that are read together ask for their volume's key once.
func TestVolumeKeyIsReadOnce(t *testing.T) {
	s := newSample(t, true)
	synctest.Test(t, func(t *testing.T) {
		c := distant(t, s)
		r, err := Open(t.Context(), c, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c.take()
		n := 0
		for _, err := range r.Backups(t.Context()) {
			if n++; err != nil {
				t.Fatal(err)
			}
		}
		keys, seen := 0, c.take()
		for _, request := range seen {
			if name, ok := parseVolumeName(request[len("get "):]); ok && name.kind == "k" {
				keys++
			}
		}
		if n < 2 || keys != 1 {
			t.Errorf("%d backups of one volume, its key was asked for %d times: %q", n, keys, seen)
		}
	})
}
