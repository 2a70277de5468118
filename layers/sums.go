package layers

import (
	"fmt"
	"sync"
)

// sums are the checksums of the blocks of a page, in the order of the blocks; 0
// where a block is not data.
type sums [pageBlocks]uint32

// encode writes the sums into b, sumsSize bytes, and returns their checksum.
func (s *sums) encode(b []byte) uint32 {
	b = b[:sumsSize]
	for i, c := range s {
		le.PutUint32(b[4*i:], c)
	}
	clear(b[4*pageBlocks:])
	return crc(b)
}

var sumsPool = sync.Pool{New: func() any { return new([sumsSize]byte) }}

// readSums reads the checksums that a page names; all zeros if it names none.
func (l *layerFile) readSums(g, which, want uint32, into *sums) error {
	if which == 0 {
		*into = sums{}
		return nil
	}
	b := sumsPool.Get().(*[sumsSize]byte)
	defer sumsPool.Put(b)
	off := sumsOffset(g, which)
	if err := readFull(l.maps, b[:], off); err != nil {
		return err
	}
	if got := crc(b[:]); got != want {
		return &CorruptError{l.path, off, fmt.Sprintf("checksums with checksum %08x", want), fmt.Sprintf("%08x", got)}
	}
	for i := range into {
		into[i] = le.Uint32(b[4*i:])
	}
	return nil
}

// putSums writes checksums beside those that count, and names them in the page.
// They are not durable before a sync of the map.
func (w *pageWrite) putSums(s *sums) error {
	b := sumsPool.Get().(*[sumsSize]byte)
	defer sumsPool.Put(b)
	w.page.SumsCRC = s.encode(b[:])
	w.page.Sums = 3 - max(w.page.Sums, 1)
	err := w.l.maps.writeAt(b[:], sumsOffset(w.g, w.page.Sums))
	w.l.unkept.Store(true)
	return err
}

// eachData calls f with each run of at most 256 blocks of data of a page, and
// their bytes. i is the index of the first block in the page.
func (l *layerFile) eachData(g uint32, kinds *kindBits, f func(i int, b []byte) error) error {
	buf := copyPool.Get().(*[copyBlocks * BlockSize]byte)
	defer copyPool.Put(buf)
	for i := 0; i < pageBlocks; {
		stop := kinds.run(i, pageBlocks)
		if kinds.at(i) != Data {
			i = stop
			continue
		}
		stop = min(stop, i+copyBlocks)
		b := buf[:(stop-i)*BlockSize]
		if err := readFull(l.data, b, (int64(g)*pageBlocks+int64(i))*BlockSize); err != nil {
			return err
		}
		if err := f(i, b); err != nil {
			return err
		}
		i = stop
	}
	return nil
}

const copyBlocks = 256

var copyPool = sync.Pool{New: func() any { return new([copyBlocks * BlockSize]byte) }}

// check compares blocks with their checksums. i is the index of the first in
// the page.
func (s *sums) check(l *layerFile, g uint32, i int, b []byte) error {
	for ; len(b) > 0; i, b = i+1, b[BlockSize:] {
		if got := crc(b[:BlockSize]); got != s[i] {
			return l.damaged(g, i, s[i], got)
		}
	}
	return nil
}

// take makes the checksums of blocks.
func (s *sums) take(i int, b []byte) {
	for ; len(b) > 0; i, b = i+1, b[BlockSize:] {
		s[i] = crc(b[:BlockSize])
	}
}

// readSealed reads p at off, and compares the blocks that are whole in it with
// their checksums. The layer is sealed, and has data there.
func (l *layerFile) readSealed(p []byte, off int64) error {
	if err := readFull(l.data, p, off); err != nil {
		return err
	}
	b := (off + BlockSize - 1) / BlockSize
	end := (off + int64(len(p))) / BlockSize
	for b < end {
		g := uint32(b / pageBlocks)
		i := int(b - int64(g)*pageBlocks)
		n := int(min(end-b, copyBlocks, int64(pageBlocks-i)))
		blocks := p[b*BlockSize-off:][:n*BlockSize]
		if err := l.checkBlocks(g, i, blocks); err != nil {
			return err
		}
		b += int64(n)
	}
	return nil
}

// checkBlocks compares at most copyBlocks blocks, the first of which is i of
// group g, with their checksums. It reads no more of those than it needs: one
// that is damaged itself is found as well.
func (l *layerFile) checkBlocks(g uint32, i int, blocks []byte) error {
	n := len(blocks) / BlockSize
	stored := storedPool.Get().(*[4 * copyBlocks]byte)
	defer storedPool.Put(stored)
	l.mu.RLock()
	gr := l.groups[g]
	made := gr != nil && gr.sums != 0
	var err error
	if made {
		err = readFull(l.maps, stored[:4*n], sumsOffset(g, gr.sums)+int64(4*i))
	}
	l.mu.RUnlock()
	if err != nil || !made {
		return err
	}
	for j := range n {
		if got, want := crc(blocks[j*BlockSize:][:BlockSize]), le.Uint32(stored[4*j:]); got != want {
			return l.damaged(g, i+j, want, got)
		}
	}
	return nil
}

var storedPool = sync.Pool{New: func() any { return new([4 * copyBlocks]byte) }}

// damaged is the error for a block that is not what was sealed.
func (l *layerFile) damaged(g uint32, i int, want, got uint32) error {
	return &CorruptError{
		Path: l.dataPath, Off: (int64(g)*pageBlocks + int64(i)) * BlockSize,
		Expected: fmt.Sprintf("checksum %08x", want), Found: fmt.Sprintf("%08x", got),
	}
}

// unsummed returns the groups that have data without checksums.
func (l *layerFile) unsummed() []uint32 {
	var list []uint32
	for _, g := range l.present() {
		l.mu.RLock()
		if gr := l.groups[g]; gr.sums == 0 && gr.blocks > 0 {
			list = append(list, g)
		}
		l.mu.RUnlock()
	}
	return list
}

// sumPages makes the checksums of some groups of a sealed layer: first the
// checksums, durable, then the pages that name them.
func (v *Volume) sumPages(l *layerFile, groups []uint32) error {
	var writes []pageWrite
	for _, g := range groups {
		w, err := l.nextVersion(g)
		if err != nil {
			return err
		}
		var s sums
		err = l.eachData(g, &w.page.Kinds, func(i int, b []byte) error {
			s.take(i, b)
			return nil
		})
		if err != nil {
			return err
		}
		if err := w.putSums(&s); err != nil {
			return err
		}
		writes = append(writes, w)
	}
	if err := v.syncMap(l); err != nil {
		return err
	}
	return v.writePages(writes)
}

// nextVersion prepares the next version of a page of a sealed layer, for a
// change of its kinds or its checksums. A group that the map does not have is
// all absent.
func (l *layerFile) nextVersion(g uint32) (pageWrite, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	gr := l.groups[g]
	if gr == nil {
		return l.version(g, &group{slot: -1}, new(kindBits)), nil
	}
	var kinds kindBits
	if err := l.loadLocked(g, gr, &kinds); err != nil {
		return pageWrite{}, err
	}
	return l.version(g, gr, &kinds), nil
}
