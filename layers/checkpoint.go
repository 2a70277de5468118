package layers

// checkpoint makes everything that was written before the call durable in the
// data and map files, and kills the records of the journal up to now. Flushes
// may go on meanwhile: their records stay alive.
func (v *Volume) checkpoint() error { return v.checkpointAs(false) }

// checkpointAs is checkpoint; clean says in the barrier that the volume is being
// closed.
//
// The order is what makes it safe. The mark is taken first, so every record
// before it is of blocks that are in the data files, if only in memory. The
// kinds are copied before the data is synced, so no map on disk ever names data
// that is not. The barrier comes last, so a crash before it replays records
// over blocks that have what the records say, or something newer that no flush
// has promised.
func (v *Volume) checkpointAs(clean bool) error {
	v.checkpoints.Lock()
	defer v.checkpoints.Unlock()
	if err := v.Failure(); err != nil {
		return err
	}

	v.meta.Lock() // no seal in between: records of that layer after start stay alive
	v.ring.Lock()
	start := v.journal.next
	v.ring.Unlock()
	sealed := len(v.unsettled)
	layers := append(v.unsettled[:sealed:sealed], v.head)
	v.meta.Unlock()

	var writes []pageWrite
	for _, l := range layers {
		v.takeBacklog(l) // the sync is for them
		writes = append(writes, l.takeDirty()...)
	}
	if err := v.settle(layers, writes); err != nil {
		putBack(writes)
		return err
	}
	if clean {
		if err := v.keepMaps(); err != nil {
			return err
		}
	}
	if err := v.writeBarrier(start, clean); err != nil {
		return err
	}
	v.meta.Lock()
	v.unsettled = append([]*layerFile(nil), v.unsettled[sealed:]...)
	v.meta.Unlock()
	for _, l := range layers[:sealed] {
		l.forget()
	}
	if sealed > 0 || v.loose() {
		kick(v.wantTidy)
	}
	return nil
}

// settle makes data durable, and then the pages that name it.
func (v *Volume) settle(layers []*layerFile, writes []pageWrite) error {
	for _, l := range layers {
		if !l.unsynced.Swap(false) {
			continue
		}
		if err := v.sync(l.data); err != nil {
			return err
		}
	}
	return v.writePages(writes)
}

// writePages writes pages, syncs, and makes them count.
func (v *Volume) writePages(writes []pageWrite) error {
	if err := v.putPages(writes); err != nil {
		return err
	}
	for i := range writes {
		writes[i].commit()
	}
	return nil
}

// putPages writes pages and makes them durable. Pages of one layer are
// neighbours in writes.
func (v *Volume) putPages(writes []pageWrite) error {
	for i := range writes {
		if err := writes[i].write(); err != nil {
			return err
		}
		if i+1 == len(writes) || writes[i+1].l != writes[i].l {
			if err := v.syncMap(writes[i].l); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncMap makes what was written to the map of a layer durable.
func (v *Volume) syncMap(l *layerFile) error {
	l.unkept.Store(false)
	return v.sync(l.maps)
}

// keepMaps makes the maps of all layers durable. A disk that was full may have
// taken some pages of a change that then was given up, and the next open would
// count on them.
func (v *Volume) keepMaps() error {
	v.mu.RLock()
	files := v.files
	v.mu.RUnlock()
	for _, l := range files {
		if l.unkept.Load() {
			if err := v.syncMap(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeBarrier kills the records before m.
func (v *Volume) writeBarrier(m mark, clean bool) error {
	if err := v.journal.writeBarrier(m, clean); err != nil {
		return v.fail(err)
	}
	v.ring.Lock()
	v.journal.moveBarrier(m)
	v.ring.Unlock()
	return nil
}

// runCheckpoints makes a checkpoint whenever a quarter of the journal is alive,
// so that a flush need not wait for one.
func (v *Volume) runCheckpoints() {
	defer v.background.Done()
	for {
		select {
		case <-v.stop:
			return
		case <-v.wantCheckpoint:
		case <-v.recent.wanted():
			if err := v.Flush(); err != nil {
				v.log.Warn("flush of many recent writes did not succeed", "volume", v.id, "error", err)
			}
			continue
		}
		err := v.writeBack()
		if err == nil {
			err = v.checkpoint()
		}
		if err == nil {
			err = v.growJournal()
		}
		if err != nil {
			v.log.Warn("checkpoint did not succeed; flushes go on while the journal has room", "volume", v.id, "error", err)
		}
	}
}
