package layers

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
)

// ReadAt reads len(p) bytes at off, as the last writes left them. A block of a
// sealed layer that is read for the first time, whole, is compared with its
// checksum; damage is a *CorruptError.
//
// After a Failure it reads what the next open will find: all that was flushed,
// and of what was not, nothing that the disk may have lost.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if v.failed.Load() == nil {
		n, err := v.readNow(p, off, nil)
		if v.failed.Load() == nil {
			return n, err
		}
	}
	known, err := v.promises()
	if err != nil {
		return 0, err
	}
	return v.readNow(p, off, known)
}

// readNow is ReadAt of what is there: in the page cache too if known is nil.
func (v *Volume) readNow(p []byte, off int64, known *promised) (int, error) {
	g := v.grace.enter()
	n, err := v.readAt(p, off, known)
	v.grace.leave(g)
	return n, err
}

// readAt is readNow inside grace.
func (v *Volume) readAt(p []byte, off int64, known *promised) (int, error) {
	if v.closed.Load() {
		return 0, v.errClosed()
	}
	n, err := clip(len(p), off, v.size.Load())
	if n == 0 {
		return 0, err
	}
	p = p[:n]
	seen := v.seen.Load() // before the map
	last := blocksOf(off + int64(n))
	for done := 0; done < n; {
		at := off + int64(done)
		val, stop := v.live.run(at/BlockSize, last)
		part := p[done:min(int64(n), stop*BlockSize-off)]
		var rerr error
		switch {
		case val < slotBase:
			clear(part)
		case known != nil:
			rerr = known.read(v.layerOf(val), part, at)
		default:
			rerr = v.readLayer(v.layerOf(val), part, at, seen)
		}
		if rerr != nil {
			return done, rerr
		}
		done += len(part)
	}
	return n, err
}

// clip returns how many of n bytes at off are inside size, and the error that
// io.ReaderAt wants for the rest.
func clip(n int, off, size int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read at offset %d: %w", off, fs.ErrInvalid)
	case n == 0:
		return 0, nil
	case off >= size:
		return 0, io.EOF
	case int64(n) > size-off:
		return int(size - off), io.EOF
	}
	return n, nil
}

// Extents yields Data and Zero where the chain says something, and nothing
// where it never did.
func (v *Volume) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		size := v.size.Load()
		off, end, ok := clipRange(off, n, size)
		if !ok {
			return
		}
		var out extentRun
		for b, last := off/BlockSize, blocksOf(end); b < last; {
			if v.closed.Load() {
				yield(Extent{}, v.errClosed())
				return
			}
			val, stop := v.live.run(b, last)
			if !out.add(b, stop, kindOf(val), off, end, yield) {
				return
			}
			b = stop
		}
		out.flush(off, end, yield)
	}
}

// clipRange returns [off, end) inside [0, size), and false if nothing is left.
func clipRange(off, n, size int64) (start, end int64, ok bool) {
	if n <= 0 || off >= size {
		return 0, 0, false
	}
	end = size
	if n < size-off {
		end = off + n
	}
	return max(off, 0), end, end > max(off, 0)
}

// extentRun joins blocks of one kind to extents.
type extentRun struct {
	start, stop int64 // blocks
	kind        Kind
}

// add takes the blocks [b, stop), which follow those before, and yields what
// they end. It returns false if the iteration is over.
func (x *extentRun) add(b, stop int64, kind Kind, off, end int64, yield func(Extent, error) bool) bool {
	if kind == x.kind && b == x.stop {
		x.stop = stop
		return true
	}
	ok := x.flush(off, end, yield)
	*x = extentRun{b, stop, kind}
	return ok
}

// flush yields the last extent, clipped to [off, end) bytes.
func (x *extentRun) flush(off, end int64, yield func(Extent, error) bool) bool {
	if x.kind == Absent {
		return true
	}
	e := Extent{x.start * BlockSize, (x.stop - x.start) * BlockSize, x.kind}.Clip(off, end-off)
	return e.Len == 0 || yield(e, nil)
}

// stripe orders writes that overlap. Whole blocks may be written side by side;
// a part of a block, and zeros, are written alone.
type stripe struct {
	sync.RWMutex
	_ [40]byte // with the lock's 24 bytes, a cache line each
}

const stripeBlocks = 256 // 1 MiB

// stripesOf returns the set of stripes that [off, off+n) touches.
func stripesOf(off, n int64) uint64 {
	first, last := off/(stripeBlocks*BlockSize), (off+n-1)/(stripeBlocks*BlockSize)
	if last-first >= 63 {
		return ^uint64(0)
	}
	var set uint64
	for s := first; s <= last; s++ {
		set |= 1 << (s & 63)
	}
	return set
}

func (v *Volume) lockStripes(set uint64, alone bool) {
	for i := range v.stripes {
		switch {
		case set>>i&1 == 0:
		case alone:
			v.stripes[i].Lock()
		default:
			v.stripes[i].RLock()
		}
	}
}

func (v *Volume) unlockStripes(set uint64, alone bool) {
	for i := range v.stripes {
		switch {
		case set>>i&1 == 0:
		case alone:
			v.stripes[i].Unlock()
		default:
			v.stripes[i].RUnlock()
		}
	}
}

// checkWrite refuses a range that is not inside the volume.
func (v *Volume) checkWrite(off, n int64) error {
	if size := v.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("write of %d bytes at offset %d: the volume has %d: %w", n, off, size, fs.ErrInvalid)
	}
	return v.writable()
}

// WriteAt writes p at off. A range that is not inside the volume is refused
// whole with fs.ErrInvalid. When the disk is full the error is syscall.ENOSPC:
// then each block of the range is old or new.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if err := v.checkWrite(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	end := off + int64(len(p))
	aligned := off%BlockSize == 0 && end%BlockSize == 0
	set := stripesOf(off, int64(len(p)))
	v.lockStripes(set, !aligned)
	defer v.unlockStripes(set, !aligned)
	if aligned {
		return v.writeBlocks(p, off)
	}
	return v.writeParts(p, off)
}

// writeBlocks writes whole blocks, or the whole of the last one.
func (v *Volume) writeBlocks(p []byte, off int64) (int, error) {
	if err := v.head.data.writeAt(p, off); err != nil {
		return 0, err
	}
	if err := v.note(off/BlockSize, blocksOf(off+int64(len(p))), Data); err != nil {
		return 0, err
	}
	return len(p), nil
}

// note records in memory that blocks of the head are of a kind now. It comes
// after the data, so that whoever sees the kind finds the data.
func (v *Volume) note(b, end int64, kind Kind) error {
	val := uint16(cellZero)
	switch kind {
	case Data:
		val = v.head.slot
	case Absent:
		val = cellAbsent
	}
	v.meta.Lock()
	defer v.meta.Unlock()
	// After the data, or a checkpoint that synced before it would leave the next
	// one nothing to sync; before the kind, which a checkpoint writes.
	v.head.unsynced.Store(true)
	if err := v.head.set(b, end, kind); err != nil {
		return err
	}
	v.live.set(b, end, val)
	v.pending.add(b, end, kind)
	v.recent.add(b, end, kind)
	return nil
}

// writeParts writes a range that begins or ends inside a block. The caller has
// the stripes alone.
func (v *Volume) writeParts(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		rest := p[done:]
		in := at % BlockSize
		var n int
		var err error
		if in == 0 && len(rest) >= BlockSize {
			n, err = v.writeBlocks(rest[:len(rest)/BlockSize*BlockSize], at)
		} else {
			n, err = v.writePart(rest[:min(int64(len(rest)), BlockSize-in)], at)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

var blockPool = sync.Pool{New: func() any { return new([BlockSize]byte) }}

// writePart writes inside one block. Where the head has the block, the bytes go
// into it; otherwise the block is copied up.
func (v *Volume) writePart(p []byte, off int64) (int, error) {
	b := off / BlockSize
	kind, _, err := v.head.run(b, b+1)
	if err != nil {
		return 0, err
	}
	if kind == Data {
		return v.writeBlocks(p, off)
	}
	whole := blockPool.Get().(*[BlockSize]byte)
	defer blockPool.Put(whole)
	if _, err := v.readNow(whole[:], b*BlockSize, nil); err != nil && !isEOF(err) {
		return 0, err
	}
	if tail := v.size.Load() - b*BlockSize; tail < BlockSize {
		clear(whole[tail:])
	}
	copy(whole[off%BlockSize:], p)
	if _, err := v.writeBlocks(whole[:], b*BlockSize); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes makes [off, off+n) read as zeros and gives back the space that
// the head had for it. A range that is not inside the volume is refused whole
// with fs.ErrInvalid.
func (v *Volume) WriteZeroes(off, n int64) error {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if err := v.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	set := stripesOf(off, n)
	v.lockStripes(set, true)
	defer v.unlockStripes(set, true)

	end := off + n
	first, last := (off+BlockSize-1)/BlockSize, end/BlockSize
	if end == v.size.Load() {
		last = blocksOf(end)
	}
	if first >= last { // inside one block or across one edge
		return v.zeroParts(off, end)
	}
	if err := v.zeroParts(off, first*BlockSize); err != nil {
		return err
	}
	if err := v.zeroBlocks(first, last); err != nil {
		return err
	}
	if v.covers.Load() {
		kick(v.wantTidy)
	}
	return v.zeroParts(last*BlockSize, end)
}

var zeroBlock [BlockSize]byte

// zeroParts writes zeros into the parts of blocks that [off, end) is made of.
// What reads as zeros already is left alone.
func (v *Volume) zeroParts(off, end int64) error {
	for off < end {
		stop := min(end, (off/BlockSize+1)*BlockSize)
		b := off / BlockSize
		if val, _ := v.live.run(b, b+1); val >= slotBase {
			if _, err := v.writePart(zeroBlock[:stop-off], off); err != nil {
				return err
			}
		}
		off = stop
	}
	return nil
}

// zeroBlocks zeroes the blocks [b, end). Where nothing was ever written there
// is nothing to hide.
func (v *Volume) zeroBlocks(b, end int64) error {
	kind := Zero
	if v.root() {
		kind = Absent
	}
	for b < end {
		val, stop := v.live.run(b, end)
		if val == v.head.slot {
			if err := v.head.data.punch(b*BlockSize, (stop-b)*BlockSize); err != nil {
				return err
			}
		}
		if val >= slotBase && val != v.head.slot {
			v.covers.Store(true)
		}
		if val >= slotBase {
			if err := v.note(b, stop, kind); err != nil {
				return err
			}
		}
		b = stop
	}
	return nil
}

// root reports whether nothing is below the head.
func (v *Volume) root() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.chain.Layers[v.chain.Head].Parent < 0
}
