package layers

// A pageWrite is a new version of a group's page on its way to the map: taken
// from memory, written to the slot that does not count, synced, and only then
// made the one that counts.
type pageWrite struct {
	l    *layerFile
	g    uint32
	slot int8
	page mapPage
}

// takeDirty copies the pages that changed in memory since they were last taken.
// On failure putBack must be called with them.
func (l *layerFile) takeDirty() []pageWrite {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dirty) == 0 {
		return nil
	}
	writes := make([]pageWrite, 0, len(l.dirty))
	for _, g := range l.dirty {
		gr := l.groups[g]
		gr.dirty = false
		writes = append(writes, l.version(g, gr, gr.kinds))
	}
	l.dirty = l.dirty[:0]
	return writes
}

// version prepares the next version of a page. Checksums stay as they are.
func (l *layerFile) version(g uint32, gr *group, kinds *kindBits) pageWrite {
	w := pageWrite{l: l, g: g, page: mapPage{
		Layer: l.id, Generation: gr.gen + 1, Group: g,
		Sums: gr.sums, SumsCRC: gr.sumsCRC, Kinds: *kinds,
	}}
	if gr.slot == 0 {
		w.slot = 1
	}
	return w
}

// write puts the page into its slot. It is not durable before a sync of the
// map.
func (w *pageWrite) write() error {
	var b [slotSize]byte
	w.page.encode(b[:])
	err := w.l.maps.writeAt(b[:], slotOffset(w.g, w.slot))
	w.l.unkept.Store(true)
	return err
}

// commit makes the page the one that counts, after the sync. Kinds that are in
// memory stay: they may be newer.
func (w *pageWrite) commit() {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	gr := w.l.groups[w.g]
	gr.slot, gr.gen = w.slot, w.page.Generation
	gr.sums, gr.sumsCRC = w.page.Sums, w.page.SumsCRC
	w.l.commits++
	gr.stamp = w.l.commits
}

// commitKinds is commit for a sealed layer whose kinds changed too.
func (w *pageWrite) commitKinds() {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	gr := w.l.groups[w.g]
	if gr == nil {
		gr = new(group)
		w.l.groups[w.g] = gr
	}
	gr.setPage(&w.page, w.slot)
	w.l.totals.Store(nil)
	w.l.commits++
	gr.stamp = w.l.commits
}

// unwritten reports whether pages in memory are newer than on disk.
func (l *layerFile) unwritten() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.dirty) > 0
}

// putBack marks pages dirty again whose writing did not succeed.
func putBack(writes []pageWrite) {
	for i := range writes {
		l, g := writes[i].l, writes[i].g
		l.mu.Lock()
		if gr := l.groups[g]; !gr.dirty {
			gr.dirty = true
			l.dirty = append(l.dirty, g)
		}
		l.mu.Unlock()
	}
}
