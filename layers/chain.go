package layers

import (
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	chainMagic      = "varvechn"
	chainHeaderSize = 64
	recordSize      = 128
	noParent        = 1<<32 - 1
	maxLayers       = 65533 // slots of the block map, less absent and zero

	sectorSize = 512
	// MaxSize is the largest volume, in bytes. Files of ext4 with blocks of 4 KiB
	// have at most one block less (ext4 documentation, "High Level Design").
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

// chain is the file "chain": the layers of a volume, a tree. Each comes after the
// one that it lies on, and in the order of their seals; the root is the first. A
// chain value is never changed once it is in use.
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
		return &TooLargeError{Size: size, Limit: MaxSize}
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
		case l.Parent >= i || (l.Parent < 0) != (i == 0):
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

// line returns the indices of a layer and of those below it, from the top down.
func (c *chain) line(at int) []int {
	var list []int
	for ; at >= 0; at = c.Layers[at].Parent {
		list = append(list, at)
	}
	return list
}

// between returns the indices of the layers that one of two layers has and the
// other has not, itself and below: what was written on the way from one to the
// other.
func (c *chain) between(a, b int) []int {
	var list []int
	for a != b { // a parent comes before its children
		if a < b {
			a, b = b, a
		}
		list = append(list, a)
		a = c.Layers[a].Parent
	}
	return list
}

// children returns how many layers lie right on each layer.
func (c *chain) children() []int {
	counts := make([]int, len(c.Layers))
	for _, l := range c.Layers {
		if l.Parent >= 0 {
			counts[l.Parent]++
		}
	}
	return counts
}

// edit returns the next generation of the chain, as change has left it.
func (c *chain) edit(change func(*chain)) *chain {
	next := &chain{Volume: c.Volume, Generation: c.Generation + 1, Head: c.Head, Layers: slices.Clone(c.Layers)}
	change(next)
	return next
}

// push puts a new head on a layer.
func (c *chain) push(parent int, r layerRecord) {
	r.Parent = parent
	c.Head = len(c.Layers)
	c.Layers = append(c.Layers, r)
}

// remove takes out a layer that nothing lies on, or whose children lie on
// another one already.
func (c *chain) remove(at int) {
	c.Layers = slices.Delete(c.Layers, at, at+1)
	for i := range c.Layers {
		if c.Layers[i].Parent > at {
			c.Layers[i].Parent--
		}
	}
	if c.Head > at {
		c.Head--
	}
}

// join makes one of a layer and the one below it, which ends at no boundary and
// has nothing else on it: the place and the boundary of the upper one, and the
// files of one of the two.
func (c *chain) join(upper int, filesOfLower bool) {
	u := &c.Layers[upper]
	lower := u.Parent
	if filesOfLower {
		l := &c.Layers[lower]
		u.ID, u.Origin, u.Shared = l.ID, l.Origin, l.Shared
	}
	u.Parent = c.Layers[lower].Parent
	c.remove(lower)
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
