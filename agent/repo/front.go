package repo

import (
	"encoding/binary"
	"sync"

	"github.com/klauspost/compress/zstd"

	"varve/layers"
)

// zstdBlock is how much each zstd block of a frame holds, but the last, in
// bytes. Whoever wants one block of a frame expands the zstd blocks up to it;
// and what the blocks hold differs, so tables of their own make them smaller.
const zstdBlock = 32 << 10

// expandFront decompresses at least the first need bytes of the total that a
// frame holds. ok is false if that saves nothing, or cannot be done: then all of
// it is to be expanded, which tells why. docs/format.md, 2.6.
func expandFront(stored []byte, need, total int) (front []byte, ok bool) {
	count := (need + zstdBlock - 1) / zstdBlock
	n := count * zstdBlock
	if n >= total {
		return nil, false
	}
	var h zstd.Header
	if err := h.Decode(stored); err != nil || h.Skippable || h.HasCheckSum || h.DictionaryID != 0 {
		return nil, false
	}
	last, end, ok := zstdBlocks(stored, h.HeaderSize, count)
	if !ok {
		return nil, false
	}
	// The blocks up to there become a frame: zstd's format (RFC 8878), 3.1.1.
	scratch := storedFrames.Get().(*[frameBytes + tagSize]byte)
	defer storedFrames.Put(scratch)
	cut := append(scratch[:0], 0x28, 0xb5, 0x2f, 0xfd, 1<<7|1<<5) // one segment, its size in 4 bytes
	cut = binary.LittleEndian.AppendUint32(cut, uint32(n))
	at := len(cut) + last - h.HeaderSize
	cut = append(cut, stored[h.HeaderSize:end]...)
	cut[at] |= 1 // it is the last one now
	front, err := expands.DecodeAll(cut, make([]byte, 0, n+expandSlack))
	return front, err == nil && len(front) == n
}

// zstdBlocks walks count blocks of a zstd frame, the first of which is at an
// offset. It returns where the last of them begins and ends. ok is false unless
// another one follows: RFC 8878, 3.1.1.2.
func zstdBlocks(stored []byte, at, count int) (last, end int, ok bool) {
	for range count {
		if at+3 > len(stored) {
			return 0, 0, false
		}
		head := int(stored[at]) | int(stored[at+1])<<8 | int(stored[at+2])<<16
		size := head >> 3
		if head>>1&3 == 1 { // one byte, again and again
			size = 1
		}
		if head&1 != 0 {
			return 0, 0, false
		}
		last, at = at, at+3+size
	}
	return last, at, at < len(stored)
}

// A keptFrame is a frame in the cache: its blocks as far as somebody wanted
// them, and what the others are expanded from. It is safe for concurrent use.
type keptFrame struct {
	pack  objectID
	frame frameRef

	mu     sync.Mutex
	blocks []byte // from the first one on
	text   []byte // of all of them, compressed; nil if blocks is all
}

// first returns the first n bytes of the frame, or more, and by how much the
// frame has grown in memory. Nobody may write to them.
func (k *keptFrame) first(n int) (blocks []byte, grown int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n > len(k.blocks) && k.text != nil {
		// Whoever comes a second time is likely to come again.
		before := k.memory()
		all, err := k.frame.expand(k.text, nil)
		if err != nil {
			return nil, 0, damaged(packName(inData, k.pack), k.frame.off, err)
		}
		k.blocks, k.text = all, nil
		grown = k.memory() - before
	}
	return k.blocks, grown, nil
}

// memory is what the frame takes, in bytes.
func (k *keptFrame) memory() int64 { return memoryOf(k.blocks) + memoryOf(k.text) }

// frontMax is the longest read, in bytes, that does not expect to be followed by
// one of the rest of its frame.
const frontMax = zstdBlock

// front is how many bytes of the frame, from its first one on, hold its pieces
// up to a block of the volume.
func (w *wanted) front(end int64) int {
	n := 0
	for _, p := range w.pieces {
		n = max(n, int(int64(p.at)+min(p.end(), end)-p.block))
	}
	return n * layers.BlockSize
}
