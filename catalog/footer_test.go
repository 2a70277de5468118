package catalog

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/layers"
)

// TestDamagedTable: a table that was cut at any length, or whose end has a
// flipped byte, is an error that names it. Badger would end the process.
func TestDamagedTable(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	update(t, c, func(tx *Tx) error {
		return Volumes.Put(tx, Volume{ID: layers.NewID(), Name: "v", Created: time.Now()})
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	tables, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	if len(tables) == 0 {
		t.Fatal("a closed catalog has no table")
	}
	path := tables[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, i int, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(dir, nil)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("%s at %d of %d: got %v, want an error that names %s", what, i, len(whole), err, path)
		}
	}
	for i := range whole {
		refused("cut", i, whole[:i])
	}
	_, index, ok := cutCounted(whole)
	if ok {
		_, index, ok = cutCounted(whole[:len(whole)-4-len(index)])
	}
	start := bytes.Index(whole, index)
	if !ok || start <= 0 {
		t.Fatalf("no index in a table of %d bytes", len(whole))
	}
	for i := start; i < len(whole); i++ {
		b := bytes.Clone(whole)
		b[i] ^= 0xff
		refused("flip", i, b)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}
