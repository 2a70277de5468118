package layers

import (
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// Snapshot seals the head: everything that was written before the call is in
// the snapshot id, nothing that is written after it has returned. Writes stop
// for the moment that it takes to make the last of them durable and to replace
// the chain, whatever the volume's size. An id that the volume has already is
// fs.ErrExist.
func (v *Volume) Snapshot(id ID) error {
	if err := v.snapshot(id); err != nil {
		return fmt.Errorf("snapshot %s of volume %s: %w", id, v.id, err)
	}
	kick(v.wantCheckpoint)
	return nil
}

func (v *Volume) snapshot(id ID) error {
	if id.IsZero() {
		return fmt.Errorf("no id: %w", fs.ErrInvalid)
	}
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.writable(); err != nil {
		return err
	}
	if v.chain.find(id) >= 0 {
		return fs.ErrExist
	}
	// All that takes time comes before the writes are stopped: the new head's
	// files, and the bulk of what is not durable yet.
	next, err := v.newHead()
	if err != nil {
		return err
	}
	err = v.Flush()
	if err == nil {
		err = v.seal(id, next)
	}
	if err != nil {
		v.abandon(next)
	}
	return err
}

// newHead makes an empty layer with durable files and a slot.
func (v *Volume) newHead() (*layerFile, error) {
	id := NewID()
	l, err := createLayer(v.d, id, v.id, v.size.Load())
	if err == nil {
		if err = v.giveSlot(l); err == nil {
			if err = v.syncDir(); err == nil {
				return l, nil
			}
			v.takeSlot(l)
		}
		l.close() // empty
	}
	v.d.remove(dataName(id)) // what stays goes at the next open
	v.d.remove(mapName(id))
	return nil, err
}

// dropLayer removes a layer that the chain does not name. Nobody can reach it
// but views that hold it.
func (v *Volume) dropLayer(l *layerFile) {
	v.takeSlot(l)
	for _, name := range []string{dataName(l.id), mapName(l.id)} {
		if err := v.d.remove(name); err != nil {
			v.log.Warn("a file is left until the volume is opened again", "volume", v.id, "file", name, "error", err)
		}
	}
	if err := l.release(); err != nil {
		v.log.Warn("close of a layer that is gone", "volume", v.id, "layer", l.id, "error", err)
	}
}

// abandon gives up a new head that could not become one. If the disk failed it is
// not known what the chain names after a crash: then the files stay, and the next
// open removes them if they are not needed.
func (v *Volume) abandon(next *layerFile) {
	if v.Failure() == nil {
		v.dropLayer(next)
		return
	}
	v.takeSlot(next)
	if err := next.release(); err != nil {
		v.log.Warn("close of a layer that is not used", "volume", v.id, "layer", next.id, "error", err)
	}
}

// seal stops writes, makes the rest durable, and puts next on top of what was the
// head.
func (v *Volume) seal(id ID, next *layerFile) error {
	return v.sealTo(id, next, v.chain.Head, nil)
}

// sealTo seals the head and puts a new one on a layer. live is the new block map;
// nil is the old one. The caller holds admin.
func (v *Volume) sealTo(id ID, next *layerFile, parent int, live *blockMap) error {
	v.gate.Lock()
	defer v.gate.Unlock()
	if err := v.Flush(); err != nil {
		return err
	}
	c := v.chain.edit(func(c *chain) {
		old := &c.Layers[c.Head]
		old.Boundary, old.Sealed, old.Flags = id, time.Now().UTC(), flagSnapshot
		c.push(parent, layerRecord{ID: next.id, Size: old.Size})
	})
	if err := v.replaceChain(c); err != nil {
		return err
	}
	v.meta.Lock()
	v.unsettled = append(v.unsettled, v.head)
	v.head = next
	if live != nil {
		v.live.become(live)
	}
	v.meta.Unlock()
	v.seen.Store(newSeen(blocksOf(v.size.Load())))
	v.mu.Lock()
	v.chain = c
	v.files = append(v.files[:len(v.files):len(v.files)], next)
	v.mu.Unlock()
	return nil
}

// replaceChain makes c the chain on disk. If it cannot be known whether that
// succeeded, the volume becomes read-only.
func (v *Volume) replaceChain(c *chain) error {
	f, err := v.d.create(chainTemp)
	if err != nil {
		return err
	}
	err = f.writeAt(c.encode(), 0)
	if err == nil {
		err = v.sync(f)
	}
	if cerr := f.close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = v.d.rename(chainTemp, chainName)
	}
	if err != nil {
		v.d.remove(chainTemp) // what stays goes at the next open
		return err
	}
	return v.syncDir()
}

// setChain replaces the chain on disk and then in memory; the layers stay. The
// caller holds admin.
func (v *Volume) setChain(change func(*chain)) error {
	c := v.chain.edit(change)
	if err := v.replaceChain(c); err != nil {
		return err
	}
	v.mu.Lock()
	v.chain = c
	v.mu.Unlock()
	return nil
}

// changeRecord is setChain for the record of one layer.
func (v *Volume) changeRecord(l *layerFile, change func(*layerRecord)) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.goOn(); err != nil {
		return err
	}
	at := slices.Index(v.files, l)
	return v.setChain(func(c *chain) { change(&c.Layers[at]) })
}

// DeleteSnapshot gives up a snapshot. With keepMark its boundary stays as a
// mark, for a Diff from it. The other snapshots and the volume read as before;
// the space comes back in the background, and what an open View reads stays
// until it is closed. A snapshot that is not there is fs.ErrNotExist.
func (v *Volume) DeleteSnapshot(id ID, keepMark bool) error {
	flags := uint32(0)
	if keepMark {
		flags = flagMark
	}
	if err := v.setBoundary(id, flagSnapshot, flags); err != nil {
		return fmt.Errorf("delete snapshot %s of volume %s: %w", id, v.id, err)
	}
	return nil
}

// DropMark gives up a mark. One that is not there is fs.ErrNotExist.
func (v *Volume) DropMark(id ID) error {
	if err := v.setBoundary(id, flagMark, 0); err != nil {
		return fmt.Errorf("drop mark %s of volume %s: %w", id, v.id, err)
	}
	return nil
}

// setBoundary changes the flags of a boundary from one to another; 0 gives it
// up.
func (v *Volume) setBoundary(id ID, from, to uint32) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.writable(); err != nil {
		return err
	}
	at := v.chain.find(id)
	if at < 0 || v.chain.Layers[at].Flags != from {
		return fs.ErrNotExist
	}
	err := v.setChain(func(c *chain) {
		c.Layers[at].Flags = to
		if to == 0 {
			c.Layers[at].Boundary = ID{}
		}
	})
	if err == nil {
		v.gaveUp()
	}
	return err
}

// Grow makes the volume larger; what is new reads as zeros. The same size is
// not an error, a smaller one is fs.ErrInvalid, one that the file system has no
// files for a *TooLargeError.
func (v *Volume) Grow(size int64) error {
	if err := v.grow(size); err != nil {
		return fmt.Errorf("grow volume %s: %w", v.id, err)
	}
	return nil
}

func (v *Volume) grow(size int64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	v.admin.Lock()
	defer v.admin.Unlock()
	v.gate.Lock()
	defer v.gate.Unlock()
	if err := v.writable(); err != nil {
		return err
	}
	old := v.size.Load()
	if size < old {
		return fmt.Errorf("from %d to %d bytes: a volume cannot shrink: %w", old, size, fs.ErrInvalid)
	}
	if size == old {
		return nil
	}
	if err := setLength(v.d, v.head.data, size); err != nil {
		return err
	}
	err := v.setChain(func(c *chain) { c.Layers[c.Head].Size = size })
	if err != nil {
		return err
	}
	v.seen.Store(newSeen(blocksOf(size)))
	v.meta.Lock()
	v.live.grow(blocksOf(size))
	v.head.size = size
	v.meta.Unlock()
	v.size.Store(size)
	return nil
}
