package layers_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"varve/layers"
	"varve/layers/layertest"
)

// block returns a block of one byte.
func block(c byte) []byte { return bytes.Repeat([]byte{c}, layers.BlockSize) }

// A volume, a snapshot and a diff are Layers.
func TestLayers(t *testing.T) {
	const size = 9*layers.BlockSize + 512
	v, err := layers.Create(filepath.Join(t.TempDir(), "v"), layers.NewID(), size, layers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	put := func(b int64, p []byte) {
		t.Helper()
		if _, err := v.WriteAt(p, b*layers.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	zero := func(b, n int64) {
		t.Helper()
		if err := v.WriteZeroes(b*layers.BlockSize, n); err != nil {
			t.Fatal(err)
		}
	}
	put(1, block(1))
	put(2, block(2))
	put(9, bytes.Repeat([]byte{9}, 512))
	older := layers.NewID()
	if err := v.Snapshot(older); err != nil {
		t.Fatal(err)
	}
	put(2, block(3))
	zero(1, layers.BlockSize)
	put(5, block(5))
	newer := layers.NewID()
	if err := v.Snapshot(newer); err != nil {
		t.Fatal(err)
	}
	put(9, bytes.Repeat([]byte{8}, 512))

	const a, d, z = layers.Absent, layers.Data, layers.Zero
	content := func(bytesOf map[int]byte, kinds ...layers.Kind) layertest.Content {
		var p []byte
		for i := range kinds {
			p = append(p, block(bytesOf[i])...)
		}
		return layertest.Content{Bytes: p[:size], Kinds: kinds}
	}
	t.Run("volume", func(t *testing.T) {
		layertest.Run(t, v, content(map[int]byte{2: 3, 5: 5, 9: 8}, a, z, d, a, a, d, a, a, a, d))
	})
	views := map[string]struct {
		open func() (*layers.View, error)
		want layertest.Content
	}{
		"older snapshot": {
			func() (*layers.View, error) { return v.View(older) },
			content(map[int]byte{1: 1, 2: 2, 9: 9}, a, d, d, a, a, a, a, a, a, d),
		},
		"newer snapshot": {
			func() (*layers.View, error) { return v.View(newer) },
			content(map[int]byte{2: 3, 5: 5, 9: 9}, a, z, d, a, a, d, a, a, a, d),
		},
		"diff forward": {
			func() (*layers.View, error) { return v.Diff(older, newer) },
			content(map[int]byte{2: 3, 5: 5}, a, z, d, a, a, d, a, a, a, a),
		},
		"diff backward": {
			func() (*layers.View, error) { return v.Diff(newer, older) },
			content(map[int]byte{1: 1, 2: 2}, a, d, d, a, a, z, a, a, a, a),
		},
		"diff of one": {
			func() (*layers.View, error) { return v.Diff(older, older) },
			content(nil, a, a, a, a, a, a, a, a, a, a),
		},
	}
	for name, c := range views {
		t.Run(name, func(t *testing.T) {
			w, err := c.open()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			layertest.Run(t, w, c.want)
		})
	}
}
