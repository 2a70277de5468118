package layers

import (
	"fmt"
	"math/bits"
)

// Geometry of LAYER.map. docs/format.md, "LAYER.map".
const (
	regionBlocks = 512                        // 2 MiB, the unit of the block map in memory
	pageRegions  = 31                         // regions in a page
	pageBlocks   = regionBlocks * pageRegions // 15872 blocks, 62 MiB
	pageWords    = pageBlocks / 32            // of 64 bits, 32 blocks each
	slotSize     = 4096                       // a page on disk
	sumsSize     = 65536                      // the checksums of a page on disk
	groupSize    = 2 * (slotSize + sumsSize)  // two slots, two sums
	mapHeader    = 4096                       // bytes before group 0
	mapMagic     = "varvemap"
	pageMagic    = "vmpg"
	pageHeader   = 128
)

// dropped is the fourth kind of a block, in maps only: the layer had said
// something, a newer layer hides it, and the data was given up. It counts as a
// change, and no reader meets it.
const dropped Kind = 3

// kindBits are the kinds of the blocks of one page, two bits each; block i is
// bits 2(i%32) and the next of word i/32.
type kindBits [pageWords]uint64

func (k *kindBits) at(i int) Kind { return Kind(k[i>>5] >> (2 * (i & 31)) & 3) }

func (k *kindBits) set(i int, kind Kind) {
	shift := 2 * (i & 31)
	k[i>>5] = k[i>>5]&^(3<<shift) | uint64(kind)<<shift
}

// fill sets the blocks [i, end).
func (k *kindBits) fill(i, end int, kind Kind) {
	for ; i < end && i&31 != 0; i++ {
		k.set(i, kind)
	}
	for ; i+32 <= end; i += 32 {
		k[i>>5] = spread(kind)
	}
	for ; i < end; i++ {
		k.set(i, kind)
	}
}

// run returns the end of the run of equal kinds that begins at i, at most end.
func (k *kindBits) run(i, end int) int {
	want := k.at(i)
	all := spread(want)
	for i++; i < end; i++ {
		if i&31 == 0 {
			for i+32 <= end && k[i>>5] == all {
				i += 32
			}
			if i >= end {
				return end
			}
		}
		if k.at(i) != want {
			return i
		}
	}
	return end
}

// count returns how many blocks are of the kind.
func (k *kindBits) count(kind Kind) int {
	n := 0
	for _, w := range k {
		n += bits.OnesCount64(lows(^(w ^ spread(kind))))
	}
	return n
}

// lowBits are the low bits of the 32 pairs of a word.
const lowBits = 0x5555555555555555

// says returns the low bit of each pair that is not absent.
func says(w uint64) uint64 { return (w | w>>1) & lowBits }

// lows returns the low bit of each pair whose bits are both one.
func lows(w uint64) uint64 { return w & (w >> 1) & lowBits }

// spread returns a word of 32 blocks of one kind.
func spread(kind Kind) uint64 { return uint64(kind) * lowBits }

// mapPage is a page of LAYER.map as it is stored.
type mapPage struct {
	Layer      ID
	Generation uint64
	Group      uint32
	Sums       uint32 // 0: none; 1, 2: in sums 0 or 1 of the group
	SumsCRC    uint32
	Kinds      kindBits
}

// encode writes the page into b, slotSize bytes.
func (p *mapPage) encode(b []byte) {
	b = b[:slotSize]
	clear(b[:pageHeader])
	copy(b, pageMagic)
	le.PutUint64(b[8:], p.Generation)
	copy(b[16:], p.Layer[:])
	le.PutUint32(b[32:], p.Group)
	le.PutUint32(b[36:], p.Sums)
	le.PutUint32(b[40:], p.SumsCRC)
	for i, w := range p.Kinds {
		le.PutUint64(b[pageHeader+8*i:], w)
	}
	le.PutUint32(b[4:], crcWithout(b, 4))
}

// decodePage reads a slot that is not all zeros.
func decodePage(path string, off int64, b []byte, layer ID, group uint32) (*mapPage, error) {
	if len(b) != slotSize {
		return nil, &CorruptError{path, off, "a page of 4096 bytes", fmt.Sprintf("%d bytes", len(b))}
	}
	if string(b[:4]) != pageMagic {
		return nil, &CorruptError{path, off, fmt.Sprintf("magic %q", pageMagic), fmt.Sprintf("%q", b[:4])}
	}
	if got, want := crcWithout(b, 4), le.Uint32(b[4:]); got != want {
		return nil, &CorruptError{path, off + 4, fmt.Sprintf("checksum %08x", want), fmt.Sprintf("%08x", got)}
	}
	if err := checkReserved(path, b, 44, pageHeader); err != nil {
		return nil, err
	}
	p := &mapPage{
		Generation: le.Uint64(b[8:]),
		Group:      le.Uint32(b[32:]),
		Sums:       le.Uint32(b[36:]),
		SumsCRC:    le.Uint32(b[40:]),
	}
	copy(p.Layer[:], b[16:])
	for i := range p.Kinds {
		p.Kinds[i] = le.Uint64(b[pageHeader+8*i:])
	}
	switch {
	case p.Layer != layer:
		return nil, &CorruptError{path, off + 16, "layer " + layer.String(), p.Layer.String()}
	case p.Group != group:
		return nil, &CorruptError{path, off + 32, fmt.Sprintf("group %d", group), fmt.Sprint(p.Group)}
	case p.Generation == 0:
		return nil, &CorruptError{path, off + 8, "a generation", "0"}
	case p.Sums > 2 || p.Sums == 0 && p.SumsCRC != 0:
		return nil, &CorruptError{path, off + 36, "sums 0, 1 or 2", fmt.Sprintf("%d, checksum %08x", p.Sums, p.SumsCRC)}
	}
	return p, nil
}

// encodeMapHeader returns the first mapHeader bytes of LAYER.map.
func encodeMapHeader(layer, volume ID) []byte {
	b := make([]byte, mapHeader)
	putHeader(b[:128], mapMagic)
	copy(b[16:], layer[:])
	copy(b[32:], volume[:])
	le.PutUint32(b[48:], BlockSize)
	le.PutUint32(b[52:], pageBlocks)
	le.PutUint32(b[124:], crc(b[:124]))
	return b
}

// checkMapHeader checks the first mapHeader bytes of LAYER.map.
func checkMapHeader(path string, b []byte, layer, volume ID) error {
	if len(b) != mapHeader {
		return &CorruptError{path, 0, "a header of 4096 bytes", fmt.Sprintf("%d bytes", len(b))}
	}
	if err := checkHeader(path, b[:128], mapMagic, 128); err != nil {
		return err
	}
	if err := checkReserved(path, b, 56, 124); err != nil {
		return err
	}
	if err := checkReserved(path, b, 128, mapHeader); err != nil {
		return err
	}
	switch {
	case ID(b[16:32]) != layer:
		return &CorruptError{path, 16, "layer " + layer.String(), ID(b[16:32]).String()}
	case ID(b[32:48]) != volume:
		return &CorruptError{path, 32, "volume " + volume.String(), ID(b[32:48]).String()}
	case le.Uint32(b[48:]) != BlockSize || le.Uint32(b[52:]) != pageBlocks:
		return fmt.Errorf("%s: block size %d, %d blocks a group: %w", path, le.Uint32(b[48:]), le.Uint32(b[52:]), ErrUnsupported)
	}
	return nil
}
