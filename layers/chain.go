package layers

import (
	"fmt"
	"io/fs"
	"time"
)

const (
	chainMagic      = "varvechn"
	chainHeaderSize = 64
	recordSize      = 128
	noParent        = 1<<32 - 1
	maxLayers       = 65533 // slots of the block map, less absent and zero

	sectorSize = 512
	// MaxSize is the largest volume, in bytes: a file of ext4 with blocks of
	// 4 KiB cannot be longer (ext4 documentation, "High Level Design").
	MaxSize = 1 << 44
)

// Flags of a record. docs/format.md, "chain".
const (
	flagSnapshot  = 1 << 0 // the boundary's data is kept
	flagMark      = 1 << 1 // only what changed since is kept
	flagShared    = 1 << 2 // other volumes may have the layer's files too
	boundaryFlags = flagSnapshot | flagMark
	knownFlags    = boundaryFlags | flagShared
)

// chain is the file "chain": the layers of a volume, each after the one below
// it. A chain value is never changed once it is in use.
type chain struct {
	Volume     ID
	Generation uint64
	Head       int // index into Layers
	Layers     []layerRecord
}

// layerRecord is one layer of a chain.
type layerRecord struct {
	ID       ID
	Origin   ID        // the volume that made the files; zero: this one
	Boundary ID        // zero: none
	Size     int64     // bytes: when sealed; of the head: now
	Sealed   time.Time // zero: the head
	Parent   int       // index of the layer below; -1: none
	Flags    uint32    // flagSnapshot, flagMark or neither
	Shared   bool      // other volumes may have the files too
}

// checkSize returns an error if a volume cannot have this many bytes.
func checkSize(size int64) error {
	switch {
	case size < sectorSize:
		return fmt.Errorf("size %d: less than %d bytes: %w", size, sectorSize, fs.ErrInvalid)
	case size > MaxSize:
		return fmt.Errorf("size %d: more than %d bytes (16 TiB): %w", size, int64(MaxSize), fs.ErrInvalid)
	case size%sectorSize != 0:
		return fmt.Errorf("size %d: not a multiple of %d bytes: %w", size, sectorSize, fs.ErrInvalid)
	}
	return nil
}

func (c *chain) encode() []byte {
	b := make([]byte, chainHeaderSize+recordSize*len(c.Layers)+4)
	putHeader(b, chainMagic)
	copy(b[16:], c.Volume[:])
	le.PutUint64(b[32:], c.Generation)
	le.PutUint32(b[40:], uint32(len(c.Layers)))
	le.PutUint32(b[44:], uint32(c.Head))
	for i, l := range c.Layers {
		l.encode(b[chainHeaderSize+recordSize*i:])
	}
	le.PutUint32(b[len(b)-4:], crc(b[:len(b)-4]))
	return b
}

func (l layerRecord) encode(b []byte) {
	copy(b, l.ID[:])
	copy(b[16:], l.Origin[:])
	copy(b[32:], l.Boundary[:])
	le.PutUint64(b[48:], uint64(l.Size))
	if !l.Sealed.IsZero() {
		le.PutUint64(b[56:], uint64(l.Sealed.UnixNano()))
	}
	le.PutUint32(b[64:], uint32(l.Parent)) // -1 becomes noParent
	flags := l.Flags
	if l.Shared {
		flags |= flagShared
	}
	le.PutUint32(b[68:], flags)
}

func decodeChain(path string, b []byte) (*chain, error) {
	if err := checkHeader(path, b, chainMagic, -1); err != nil {
		return nil, err
	}
	count := (len(b) - chainHeaderSize - 4) / recordSize
	if len(b) < chainHeaderSize+recordSize+4 || chainHeaderSize+recordSize*count+4 != len(b) ||
		int64(le.Uint32(b[40:])) != int64(count) || count > maxLayers {
		return nil, &CorruptError{path, 40, fmt.Sprintf("a count that %d bytes can hold", len(b)), fmt.Sprint(le.Uint32(b[40:]))}
	}
	if err := checkReserved(path, b, 48, 64); err != nil {
		return nil, err
	}
	c := &chain{Generation: le.Uint64(b[32:]), Head: int(le.Uint32(b[44:]))}
	copy(c.Volume[:], b[16:])
	for i := range count {
		off := chainHeaderSize + recordSize*i
		if err := checkReserved(path, b, off+72, off+recordSize); err != nil {
			return nil, err
		}
		if flags := le.Uint32(b[off+68:]); flags&^knownFlags != 0 {
			return nil, fmt.Errorf("%s: flags %#x at offset %d: %w", path, flags, off+68, ErrUnsupported)
		}
		c.Layers = append(c.Layers, decodeRecord(b[off:]))
	}
	if err := c.validate(); err != nil {
		return nil, &CorruptError{path, chainHeaderSize, "a tree of layers", err.Error()}
	}
	return c, nil
}

func decodeRecord(b []byte) layerRecord {
	flags := le.Uint32(b[68:])
	l := layerRecord{Size: int64(le.Uint64(b[48:])), Flags: flags & boundaryFlags, Shared: flags&flagShared != 0, Parent: -1}
	copy(l.ID[:], b)
	copy(l.Origin[:], b[16:])
	copy(l.Boundary[:], b[32:])
	if ns := int64(le.Uint64(b[56:])); ns != 0 {
		l.Sealed = time.Unix(0, ns).UTC()
	}
	if p := le.Uint32(b[64:]); p != noParent {
		l.Parent = int(p)
	}
	return l
}

// validate checks the rules of docs/format.md, "chain".
func (c *chain) validate() error {
	if c.Volume.IsZero() {
		return fmt.Errorf("no volume id")
	}
	if c.Head < 0 || c.Head >= len(c.Layers) {
		return fmt.Errorf("head %d of %d layers", c.Head, len(c.Layers))
	}
	ids, boundaries := map[ID]bool{}, map[ID]bool{}
	for i, l := range c.Layers {
		if err := checkSize(l.Size); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		kept := l.Flags != 0
		switch {
		case l.ID.IsZero() || ids[l.ID]:
			return fmt.Errorf("layer %d: id %s is zero or not alone", i, l.ID)
		case l.Parent >= i || l.Parent < -1:
			return fmt.Errorf("layer %d: parent %d", i, l.Parent)
		case l.Parent >= 0 && c.Layers[l.Parent].Size > l.Size:
			return fmt.Errorf("layer %d: smaller than its parent", i)
		case l.Parent == c.Head:
			return fmt.Errorf("layer %d: its parent is the head", i)
		case l.Flags == boundaryFlags:
			return fmt.Errorf("layer %d: both snapshot and mark", i)
		case kept == l.Boundary.IsZero() || boundaries[l.Boundary]:
			return fmt.Errorf("layer %d: boundary %s with flags %d, or not alone", i, l.Boundary, l.Flags)
		case (i == c.Head) != l.Sealed.IsZero() || i == c.Head && kept:
			return fmt.Errorf("layer %d: head and seal disagree", i)
		case i == c.Head && (l.Shared || !l.Origin.IsZero()) || l.Origin == c.Volume:
			return fmt.Errorf("layer %d: origin %s, shared %v", i, l.Origin, l.Shared)
		}
		ids[l.ID] = true
		if kept {
			boundaries[l.Boundary] = true
		}
	}
	return nil
}

// path returns the indices of the layers from the root to the head.
func (c *chain) path() []int {
	var up []int
	for i := c.Head; i >= 0; i = c.Layers[i].Parent {
		up = append(up, i)
	}
	for i, j := 0, len(up)-1; i < j; i, j = i+1, j-1 {
		up[i], up[j] = up[j], up[i]
	}
	return up
}

// supported returns an error if the chain has what this program cannot serve.
func (c *chain) supported(path string) error {
	if n := len(c.path()); n != len(c.Layers) {
		return fmt.Errorf("%s: %d layers are on branches: %w", path, len(c.Layers)-n, ErrUnsupported)
	}
	return nil
}

// sorted returns the same chain with its records in the order of path. It must
// be supported.
func (c *chain) sorted() *chain {
	out := &chain{Volume: c.Volume, Generation: c.Generation, Head: len(c.Layers) - 1}
	for i, at := range c.path() {
		r := c.Layers[at]
		r.Parent = i - 1
		out.Layers = append(out.Layers, r)
	}
	return out
}

// edit returns a copy of the next generation with its records made by change.
func (c *chain) edit(change func([]layerRecord) []layerRecord) *chain {
	out := &chain{Volume: c.Volume, Generation: c.Generation + 1}
	out.Layers = change(append([]layerRecord(nil), c.Layers...))
	for i := range out.Layers {
		out.Layers[i].Parent = i - 1
	}
	out.Head = len(out.Layers) - 1
	return out
}

// find returns the index of the layer that the boundary sealed, -1 if there is
// none.
func (c *chain) find(boundary ID) int {
	for i, l := range c.Layers {
		if l.Flags != 0 && l.Boundary == boundary {
			return i
		}
	}
	return -1
}
