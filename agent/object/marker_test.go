package object

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Two hosts that make one folder a target in the same instant have both looked
// and found it empty: the marker that was there first stays.
func TestTwoMarkOneFolder(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, stagingName), 0o700); err != nil {
		t.Fatal(err)
	}
	var hosts [2]*dir
	for i := range hosts {
		d, err := newDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.mark(), d.present()); err != nil {
			t.Fatal(err)
		}
		hosts[i] = d
	}
	for i, d := range hosts {
		if err := d.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Errorf("host %d: %v", i, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(folder, stagingName)); err != nil || len(left) != 0 {
		t.Errorf("%d files are left in the staging folder, %v", len(left), err)
	}
}
