package layers

import "slices"

// hideStep drops what nobody can see any more in one layer whose boundary is not
// kept. Layers that are shared are passed by.
func (v *Volume) hideStep(t *tree) (bool, error) {
	for i := range t.links {
		l := &t.links[i]
		if l.kept || l.lent || !l.settled {
			continue
		}
		next := tidied{shape: l.shape(), seen: map[ID]uint64{}}
		if l.tidied.shape != next.shape || len(l.tidied.rest) == 0 {
			l.hiders(func(up *link) { next.seen[up.id] = up.committed() })
			next.rest = l.toHide(next)
			l.tidied = next
		}
		rest := l.tidied.rest
		if len(rest) == 0 {
			continue
		}
		n := min(len(rest), pagesAtOnce)
		if err := v.hidePages(l, rest[:n]); err != nil {
			return false, err
		}
		l.tidied.rest = rest[n:]
		return true, nil
	}
	return false, nil
}

// tidied says up to where a layer has been looked through for blocks that are
// hidden.
type tidied struct {
	shape uint64        // of the layers above
	seen  map[ID]uint64 // layerFile.commits of each
	rest  []uint32      // groups that are still to be looked through for that
}

// toHide returns the groups of a layer in which something may be hidden that was
// not when it was last looked through, ascending.
func (l *link) toHide(next tidied) []uint32 {
	groups := l.present()
	if next.shape != l.tidied.shape {
		return groups
	}
	var changed []*link
	l.hiders(func(up *link) {
		if next.seen[up.id] != l.tidied.seen[up.id] {
			changed = append(changed, up)
		}
	})
	if len(changed) == 0 {
		return nil
	}
	return slices.DeleteFunc(groups, func(g uint32) bool {
		return !slices.ContainsFunc(changed, func(up *link) bool { return up.stampOf(g) > l.tidied.seen[up.id] })
	})
}

// committed returns how many pages were made durable since the layer was opened.
func (l *layerFile) committed() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.commits
}

// stampOf returns when, in terms of committed, a group was last made durable.
func (l *layerFile) stampOf(g uint32) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if gr := l.groups[g]; gr != nil {
		return gr.stamp
	}
	return 0
}

// hidePages drops what is hidden in some groups.
func (v *Volume) hidePages(l *link, groups []uint32) error {
	var writes []pageWrite
	var gone []kindBits // what was data before
	for _, g := range groups {
		h, err := l.hidden(g, durably)
		if err != nil {
			return err
		}
		w, err := l.nextVersion(g)
		if err != nil {
			return err
		}
		before := w.page.Kinds
		w.page.Kinds.hide(&h.near, &h.far)
		if w.page.Kinds != before {
			writes = append(writes, w)
			gone = append(gone, before)
		}
	}
	if len(writes) == 0 {
		return nil
	}
	if err := v.putPages(writes); err != nil {
		return err
	}
	v.commitMoved(writes)
	return v.punchGone(writes, gone)
}

// hide makes absent what near hides, and dropped what far hides.
func (k *kindBits) hide(near, far *[pageWords]uint64) {
	for i, w := range k {
		lost := says(w) & far[i]
		k[i] = (w | lost | lost<<1) &^ (near[i] | near[i]<<1)
	}
}

// commitMoved makes pages count whose kinds changed, all at one instant for
// views.
func (v *Volume) commitMoved(writes []pageWrite) {
	v.layout.Lock()
	defer v.layout.Unlock()
	for i := range writes {
		writes[i].commitKinds()
	}
	v.layoutGen.Add(1)
}

// punchGone gives back the space of blocks that were data before and are not
// now, once no reader is left that may have found them.
func (v *Volume) punchGone(writes []pageWrite, before []kindBits) error {
	v.grace.wait()
	for n := range writes {
		w := &writes[n]
		for i := 0; i < pageBlocks; {
			stop := before[n].run(i, pageBlocks)
			if before[n].at(i) == Data {
				stop = w.page.Kinds.run(i, stop)
				if w.page.Kinds.at(i) != Data {
					off := (int64(w.g)*pageBlocks + int64(i)) * BlockSize
					if err := w.l.data.punch(off, int64(stop-i)*BlockSize); err != nil {
						return err
					}
				}
			}
			i = stop
		}
	}
	return nil
}
