package nbd_test

import (
	"path/filepath"
	"testing"

	"varve/layers"
	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestVolumesAreDevices: what the daemon serves keeps the contract, as a volume
// without layers below and on top of two snapshots that are not empty.
func TestVolumesAreDevices(t *testing.T) {
	open := func(t *testing.T) *layers.Volume {
		v, err := layers.Create(filepath.Join(t.TempDir(), "v"), layers.NewID(), nbdtest.Size, layers.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
		return v
	}
	t.Run("no layers", func(t *testing.T) {
		nbdtest.RunSparse(t, func(t *testing.T) nbd.Device { return open(t) })
	})
	t.Run("layers of zeros", func(t *testing.T) {
		nbdtest.RunSparse(t, func(t *testing.T) nbd.Device {
			v := open(t)
			data := make([]byte, nbdtest.Size)
			for i := range data {
				data[i] = 1
			}
			if _, err := v.WriteAt(data, 0); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := v.Snapshot(layers.NewID()); err != nil {
					t.Fatal(err)
				}
				if err := v.WriteZeroes(0, nbdtest.Size); err != nil {
					t.Fatal(err)
				}
			}
			return v
		})
	})
}
