package layers

import "sync/atomic"

// seen remembers which blocks of sealed layers were compared with their checksums
// when the live volume read them: one bit a block. Comparing each block at its
// first read finds what rotted on the disk before it does harm, and costs reads of
// what is in memory nothing that can be measured.
//
// It is good for one head: a block that is written is in another layer then, and
// is compared anew when that is sealed. A reader takes the seen before it looks
// up the block.
type seen struct {
	top   []atomic.Pointer[seenSpan]
	spans atomic.Int32 // that exist
}

const (
	seenWords  = 4096
	seenBlocks = 64 * seenWords // of a span: 1 GiB
	maxSeen    = 512            // spans: 16 MiB for 512 GiB; after that it begins anew
)

type seenSpan [seenWords]atomic.Uint64

func newSeen(blocks int64) *seen {
	return &seen{top: make([]atomic.Pointer[seenSpan], (blocks+seenBlocks-1)/seenBlocks)}
}

func (s *seen) has(b int64) bool {
	span := s.top[b/seenBlocks].Load()
	return span != nil && span[b%seenBlocks/64].Load()>>(b%64)&1 == 1
}

func (s *seen) add(b, end int64) {
	for ; b < end; b++ {
		at := &s.top[b/seenBlocks]
		span := at.Load()
		if span == nil {
			span = new(seenSpan)
			if at.CompareAndSwap(nil, span) {
				s.spans.Add(1)
			} else {
				span = at.Load()
			}
		}
		span[b%seenBlocks/64].Or(1 << (b % 64))
	}
}

// readLayer reads p at off from a layer of the live volume, and compares the
// blocks that are whole in it and have not been seen. The caller is in grace.
func (v *Volume) readLayer(l *layerFile, p []byte, off int64, s *seen) error {
	if err := readFull(l.data, p, off); err != nil {
		return err
	}
	if !l.summed.Load() {
		return nil
	}
	b, end := (off+BlockSize-1)/BlockSize, (off+int64(len(p)))/BlockSize
	for b < end {
		if s.has(b) {
			b++
			continue
		}
		stop := b + 1
		for stop < end && stop%copyBlocks != 0 && !s.has(stop) {
			stop++
		}
		g := uint32(b / pageBlocks)
		if err := l.checkBlocks(g, int(b-int64(g)*pageBlocks), p[b*BlockSize-off:stop*BlockSize-off]); err != nil {
			return err
		}
		s.add(b, stop)
		b = stop
	}
	if s.spans.Load() > maxSeen {
		v.seen.CompareAndSwap(s, newSeen(int64(len(s.top))*seenBlocks))
	}
	return nil
}
