package layers

import (
	"io"
	"iter"
)

// BlockSize is the unit of the block map, in bytes. Reads and writes may have
// any alignment; what is recorded about them is kept per block.
const BlockSize = 4096

// A Layer is a partial map from byte ranges to data or zeros. What it says
// nothing about is absent. Layers stack: for each byte the topmost layer that
// says something wins; where none does, the byte is zero.
//
// A Layer is safe for concurrent use. A sealed layer, a view of a snapshot and
// a layer opened from a backup never change.
type Layer interface {
	// ReadAt reads len(p) bytes at off. Absent bytes read as zeros. Reading
	// past Size gives the bytes before it and io.EOF.
	io.ReaderAt

	// Size is the length of the address range in bytes, not what the layer
	// holds.
	Size() int64

	// Extents yields the extents that overlap [off, off+n), clipped to it and
	// to Size, in ascending order, without overlap. A gap means that the layer
	// says nothing about those bytes. Neighbours may have the same kind. An
	// error ends the sequence; it comes with a zero Extent.
	//
	// off and n are in bytes and need no alignment. The layer must not be
	// closed while the iterator runs.
	Extents(off, n int64) iter.Seq2[Extent, error]
}
