package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"varve/layers"
)

// A disk that fails is said, not waited for: Close ends where Badger would try
// to write its last table for ever.
func TestCloseOnAFailingDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "catalog")
	c := open(t, dir)
	if err := c.Update(func(tx *Tx) error { return Volumes.Put(tx, Volume{ID: layers.NewID(), Name: "v"}) }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for id := range 100 { // so that Badger cannot make a table
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("%06d.sst", id)), 0o700); err != nil {
			t.Fatalf("%v beside %v", err, entries)
		}
	}
	if err := c.Close(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("got %v, want %v", err, ErrReadOnly)
	}
}

// After a failed change there are no more until the catalog is opened again:
// one that succeeds might lie behind a hole in the log. Reads go on.
func TestNoChangeAfterAFailure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "catalog")
	c := open(t, dir)
	id := layers.NewID()
	put := func(name string) error {
		return c.Update(func(tx *Tx) error { return Volumes.Put(tx, Volume{ID: id, Name: name}) })
	}
	if err := put("v"); err != nil {
		t.Fatal(err)
	}
	if err := c.failure.because(syscall.EIO); !errors.Is(err, ErrReadOnly) || !errors.Is(c.Failure(), syscall.EIO) {
		t.Errorf("got %v and %v, want %v with the cause", err, c.Failure(), ErrReadOnly)
	}
	if err := put("w"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a change: %v, want %v", err, ErrReadOnly)
	}
	err := c.View(func(tx *Tx) error {
		v, err := Volumes.Get(tx, id)
		if v.Name != "v" {
			t.Errorf("read %q, want v", v.Name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("close: %v, want %v", err, ErrReadOnly)
	}
}
