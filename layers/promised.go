package layers

import "fmt"

// promised is what a volume whose disk has failed still knows for certain: what
// the next open will find. Linux does not keep what it could not write. The page
// counts as clean then, or is dropped at once, and a read finds what the disk had
// before, or zeros. So after a failure no block of the head is read that only the
// page cache has: a block is what the newest record of the journal says, else what
// the head's map on disk says, else what lies below the head.
type promised struct {
	v      *Volume
	head   *layerFile
	kinds  map[uint32]*kindBits   // groups of the head that records say something about
	places map[ID]map[int64]int64 // of blocks, in the journal: layer, block, offset
}

// promises returns what the volume has promised. The volume has failed. The
// caller is not in grace, and holds no lock that a flush or a checkpoint takes.
func (v *Volume) promises() (*promised, error) {
	v.promising.Lock()
	defer v.promising.Unlock()
	if v.promised != nil {
		return v.promised, nil
	}
	// A flush or a checkpoint that began before the failure ends first. None
	// begins after it, so the journal stays as it is.
	v.commits.alone(func() error {
		v.checkpoints.Lock()
		v.checkpoints.Unlock()
		return nil
	})
	g := v.grace.enter() // keeps the files open
	defer v.grace.leave(g)
	if v.closed.Load() {
		return nil, v.errClosed()
	}
	v.meta.Lock()
	p := &promised{v: v, head: v.head, kinds: map[uint32]*kindBits{}, places: map[ID]map[int64]int64{}}
	v.meta.Unlock()
	if err := v.journal.alive(p.add); err != nil {
		return nil, fmt.Errorf("volume %s has failed, and its journal cannot be read: %w", v.id, err)
	}
	v.promised = p
	return p, nil
}

// add takes a record, whose data is at an offset of the journal. Records come
// in their order.
func (p *promised) add(r record, data int64) error {
	places := p.places[r.Layer]
	if places == nil {
		places = map[int64]int64{}
		p.places[r.Layer] = places
	}
	for _, e := range r.Entries {
		end := e.Block + int64(e.Count)
		if r.Layer == p.head.id {
			if err := p.set(e.Block, end, e.Kind); err != nil {
				return err
			}
		}
		for b := e.Block; e.Kind == Data && b < end; b++ {
			places[b] = data
			data += BlockSize
		}
	}
	return nil
}

// set gives the blocks [b, end) of the head a kind.
func (p *promised) set(b, end int64, kind Kind) error {
	for b < end {
		g := uint32(b / pageBlocks)
		first := int64(g) * pageBlocks
		kinds := p.kinds[g]
		if kinds == nil {
			kinds = new(kindBits)
			if err := p.head.loadDurable(g, kinds); err != nil {
				return err
			}
			p.kinds[g] = kinds
		}
		stop := min(end, first+pageBlocks)
		kinds.fill(int(b-first), int(stop-first), kind)
		b = stop
	}
	return nil
}

// run returns the kind of block b of the head and the end of its run, at most end
// and at most the end of the group.
func (p *promised) run(b, end int64) (Kind, int64, error) {
	g := uint32(b / pageBlocks)
	first := int64(g) * pageBlocks
	kinds := p.kinds[g]
	if kinds == nil {
		kinds = new(kindBits)
		if err := p.head.loadDurable(g, kinds); err != nil {
			return 0, 0, err
		}
	}
	i := int(b - first)
	return kinds.at(i), first + int64(kinds.run(i, int(min(end-first, pageBlocks)))), nil
}

// read fills buf from off. The block map says that layer l has data there. The
// caller is in grace.
func (p *promised) read(l *layerFile, buf []byte, off int64) error {
	if l != p.head {
		return p.readData(l, buf, off)
	}
	return eachRun(buf, off, p.run, func(kind Kind, part []byte, at int64) error {
		if kind == Absent {
			return p.readBelow(part, at)
		}
		return p.readKind(l, kind, part, at)
	})
}

// readBelow fills buf with what lies below the head.
func (p *promised) readBelow(buf []byte, off int64) error {
	var found *layerFile
	below := p.v.below(p.head)
	find := func(b, end int64) (kind Kind, stop int64, err error) {
		p.v.layout.RLock() // a merge that began before the failure may move blocks
		defer p.v.layout.RUnlock()
		kind, stop = Absent, end
		for _, l := range below {
			if kind, stop, err = l.run(b, stop); err != nil || kind != Absent {
				found = l
				break
			}
		}
		return kind, stop, err
	}
	return eachRun(buf, off, find, func(kind Kind, part []byte, at int64) error {
		return p.readKind(found, kind, part, at)
	})
}

// readKind fills buf with blocks of one kind of a layer.
func (p *promised) readKind(l *layerFile, kind Kind, buf []byte, off int64) error {
	switch kind {
	case Data:
		return p.readData(l, buf, off)
	case dropped:
		return &CorruptError{l.path, groupOffset(uint32(off / BlockSize / pageBlocks)), "data that a reader needs", fmt.Sprintf("block %d, which was given up", off/BlockSize)}
	}
	clear(buf)
	return nil
}

// readData fills buf with data of a layer: from the journal what it has, the rest
// from the layer's file.
func (p *promised) readData(l *layerFile, buf []byte, off int64) error {
	places := p.places[l.id]
	journaled := func(b, end int64) (Kind, int64, error) {
		if _, ok := places[b]; ok {
			return Data, b + 1, nil
		}
		for b++; b < end; b++ {
			if _, ok := places[b]; ok {
				break
			}
		}
		return Absent, b, nil
	}
	return eachRun(buf, off, journaled, func(kind Kind, part []byte, at int64) error {
		if kind == Absent {
			return l.readSealed(part, at)
		}
		return readFull(p.v.journal.f, part, places[at/BlockSize]+at%BlockSize)
	})
}

// eachRun calls read for each part of buf, which begins at off, that is in one
// run of blocks. find returns the kind of a block and the end of its run.
func eachRun(buf []byte, off int64, find func(b, end int64) (Kind, int64, error), read func(kind Kind, part []byte, at int64) error) error {
	end := off + int64(len(buf))
	for at := off; at < end; {
		kind, stop, err := find(at/BlockSize, blocksOf(end))
		if err != nil {
			return err
		}
		next := min(end, stop*BlockSize)
		if err := read(kind, buf[at-off:next-off], at); err != nil {
			return err
		}
		at = next
	}
	return nil
}
