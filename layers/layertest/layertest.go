// Package layertest holds the conformance suite that every layers.Layer passes.
package layertest

import (
	"testing"

	"varve/layers"
)

// Run checks that l behaves as layers.Layer promises. want is what the layer
// says: len(want.Bytes) is its size. The layer must not change while it runs.
func Run(t *testing.T, l layers.Layer, want Content) {
	t.Helper()
	if got := l.Size(); got != int64(len(want.Bytes)) {
		t.Errorf("Size() = %d, want %d", got, len(want.Bytes))
	}
}

// Content is what a layer is expected to say.
type Content struct {
	// Bytes are what it reads as; what is absent reads as zeros.
	Bytes []byte
	// Kinds is the kind of each block of layers.BlockSize bytes. nil: not
	// checked, beyond that what is not Data reads as zeros.
	Kinds []layers.Kind
}
