// Package argon2id stretches passphrases: Argon2id, version 19, of RFC 9106.
//
//	key, err := argon2id.Key(passphrase, salt, argon2id.Cost{Passes: 3, Memory: 64 << 10, Lanes: 4}, 32)
//
// It gives the keys that golang.org/x/crypto/argon2 gives, which the tests hold
// it to, in half the time and in memory of its own. Opening a backup on a cold
// machine is mostly this, so what it costs whoever waits counts; what a guess
// costs is the cost, and the same for anybody.
//
//   - The memory lies outside of Go's heap, in huge pages where the system has
//     some, and goes back to the system with the last instruction. On the heap it
//     would stay with the process, and count double in the collector's goal.
//   - The compression of two blocks is written for AVX2. Machines without it
//     run the same steps in Go.
//
// Key may be called concurrently; each call takes its memory and all processors.
package argon2id

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/blake2b"
)

// A Cost is what one guess at a passphrase takes.
type Cost struct {
	Passes uint32 // over the memory, at least 1
	Memory uint32 // KiB; used is at least 8, and a multiple of 4, for each lane
	Lanes  uint8  // that can be filled at the same time, at least 1
}

// Numbers of RFC 9106, section 3.
const (
	version    = 0x13
	kind       = 2 // Argon2id
	slices     = 4 // of a pass: lanes see of each other only slices that are whole
	blockWords = 128
	blockBytes = blockWords * 8
)

// A block is the unit of the memory. Its words are little endian where they are
// bytes.
type block [blockWords]uint64

// Key derives size bytes. A Cost of no passes or no lanes panics. It is an error
// if the system has not the memory.
func Key(passphrase, salt []byte, c Cost, size int) ([]byte, error) {
	if c.Passes < 1 || c.Lanes < 1 {
		panic("argon2id: no passes, or no lanes")
	}
	f := &filling{cost: c, lanes: uint64(c.Lanes)}
	f.segment = max(uint64(c.Memory)/(slices*f.lanes), 2)
	f.lane = slices * f.segment
	memory, err := takeMemory(f.lanes * f.lane * blockBytes)
	if err != nil {
		return nil, fmt.Errorf("%d MiB of memory to stretch a passphrase: %w; stop other programs, or raise the limit on this one's memory", f.lanes*f.lane>>10, err)
	}
	defer giveMemory(memory)
	f.blocks = blocksOf(memory)
	f.begin(seed(passphrase, salt, c, size))
	for pass := range uint64(c.Passes) {
		for slice := range uint64(slices) {
			f.fillSlice(pass, slice)
		}
	}
	return f.finish(size), nil
}

// seed is H0: RFC 9106, section 3.2, step 1, without a secret and associated
// data.
func seed(passphrase, salt []byte, c Cost, size int) [blake2b.Size]byte {
	var b []byte
	for _, n := range []uint32{uint32(c.Lanes), uint32(size), c.Memory, c.Passes, version, kind} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for _, field := range [][]byte{passphrase, salt, nil, nil} {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return blake2b.Sum512(b)
}

// A filling is the memory of one Key: lanes of four segments each.
type filling struct {
	cost    Cost
	blocks  []block // zero at first
	lanes   uint64
	lane    uint64 // blocks of a lane
	segment uint64 // blocks of a segment
}

// begin fills the first two blocks of each lane: section 3.2, steps 3 and 4.
func (f *filling) begin(h0 [blake2b.Size]byte) {
	var text [blockBytes]byte
	for lane := range f.lanes {
		for i := range uint64(2) {
			in := binary.LittleEndian.AppendUint32(h0[:len(h0):len(h0)], uint32(i))
			in = binary.LittleEndian.AppendUint32(in, uint32(lane))
			stretch(text[:], in)
			b := &f.blocks[lane*f.lane+i]
			for w := range b {
				b[w] = binary.LittleEndian.Uint64(text[8*w:])
			}
		}
	}
}

// fillSlice fills one segment of every lane, as many at once as there are
// processors.
func (f *filling) fillSlice(pass, slice uint64) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(int(f.lanes), runtime.GOMAXPROCS(0)) {
		all.Go(func() {
			for lane := uint64(next.Add(1)) - 1; lane < f.lanes; lane = uint64(next.Add(1)) - 1 {
				f.fillSegment(pass, slice, lane)
			}
		})
	}
	all.Wait()
}

// fillSegment fills a segment: section 3.2, steps 5 and 6. The first half of
// the first pass chooses its references by counting, so that what is read tells
// nothing of the passphrase; all else chooses them by what was written.
func (f *filling) fillSegment(pass, slice, lane uint64) {
	var scratch block
	counted := pass == 0 && slice < slices/2
	count := counter{input: block{pass, lane, slice, f.lanes * f.lane, uint64(f.cost.Passes), kind}}
	first := uint64(0)
	if pass == 0 && slice == 0 {
		first = 2 // they are there from the beginning
	}
	start := lane*f.lane + slice*f.segment
	for i := first; i < f.segment; i++ {
		at := start + i
		before := at - 1
		if i == 0 && slice == 0 {
			before = at + f.lane - 1 // the lane's last one
		}
		draw := f.blocks[before][0]
		if counted {
			draw = count.draw(i, &scratch)
		}
		refer := f.reference(draw, pass, slice, lane, i)
		mix(&f.blocks[at], &f.blocks[before], &f.blocks[refer], &scratch)
	}
}

// A counter draws references that do not depend on the passphrase: section
// 3.4.1.2.
type counter struct {
	input, drawn block
}

// draw returns the i-th draw of the segment. It is asked for them in order,
// beginning anywhere.
func (c *counter) draw(i uint64, scratch *block) uint64 {
	if page := i/blockWords + 1; c.input[6] != page {
		var zero, middle block
		c.input[6], c.drawn = page, block{}
		mix(&middle, &zero, &c.input, scratch)
		mix(&c.drawn, &zero, &middle, scratch)
	}
	return c.drawn[i%blockWords]
}

// reference is the block that a draw means for the i-th block of a segment:
// section 3.4.2. It is one of an area that begins behind the current segment,
// or in the first pass at the lane's start, and goes on as far as is filled.
func (f *filling) reference(draw, pass, slice, lane, i uint64) uint64 {
	of := draw >> 32 % f.lanes
	if pass == 0 && slice == 0 {
		of = lane
	}
	begin, area := uint64(0), slice*f.segment
	if pass > 0 {
		begin, area = (slice+1)%slices*f.segment, (slices-1)*f.segment
	}
	switch {
	case of == lane:
		area += i - 1 // this segment too, but for the block just before
	case i == 0:
		area--
	}
	x := draw & (1<<32 - 1)
	x = x * x >> 32
	return of*f.lane + (begin+area-1-area*x>>32)%f.lane
}

// finish is section 3.2, steps 7 and 8.
func (f *filling) finish(size int) []byte {
	var last block
	for lane := range f.lanes {
		for w, word := range f.blocks[(lane+1)*f.lane-1] {
			last[w] ^= word
		}
	}
	text := make([]byte, 0, blockBytes)
	for _, word := range last {
		text = binary.LittleEndian.AppendUint64(text, word)
	}
	key := make([]byte, size)
	stretch(key, text)
	return key
}

// stretch fills out with the variable-length hash H' of in: section 3.3.
func stretch(out, in []byte) {
	text := append(binary.LittleEndian.AppendUint32(nil, uint32(len(out))), in...)
	if len(out) <= blake2b.Size {
		hash(out, text)
		return
	}
	var v [blake2b.Size]byte
	hash(v[:], text)
	for {
		n := copy(out, v[:blake2b.Size/2])
		out = out[n:]
		if len(out) <= blake2b.Size {
			hash(out, v[:])
			return
		}
		hash(v[:], v[:])
	}
}

// hash is BLAKE2b of as many bytes as out has, 1 to 64.
func hash(out, in []byte) {
	h, err := blake2b.New(len(out), nil)
	if err != nil {
		panic("argon2id: BLAKE2b: " + err.Error()) // its length is in range
	}
	h.Write(in)
	h.Sum(out[:0])
}
