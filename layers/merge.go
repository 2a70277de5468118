package layers

import "slices"

// mergeStep takes one step towards making one layer of two neighbours: it moves
// some blocks of the smaller into the larger, or, when the smaller is empty,
// takes it out of the chain. Where two lines of layers part, nothing is merged.
func (v *Volume) mergeStep(t *tree) (bool, error) {
	for i := range t.links {
		lower := &t.links[i]
		if lower.bound || lower.lent || !lower.settled || len(lower.up) != 1 {
			continue
		}
		if upper := lower.up[0]; upper.settled && !upper.lent {
			return true, v.merge(lower, upper)
		}
	}
	return false, nil
}

func (v *Volume) merge(lower, upper *link) error {
	from, to := lower, upper
	lowerData, _ := lower.usage()
	upperData, _ := upper.usage()
	if upperData < lowerData {
		from, to = upper, lower
	}
	groups := from.present()
	if len(groups) == 0 {
		return v.unlink(from.layerFile, lower.layerFile, upper.layerFile)
	}
	if to.size < upper.size {
		// The lower layer may get blocks past its size: an open after a crash
		// must know that they may be there.
		if err := v.widen(to.layerFile, upper.size); err != nil {
			return err
		}
	}
	return v.move(from.layerFile, to.layerFile, v.some(from.layerFile, groups), to.layerFile == lower.layerFile)
}

// some returns the first of the groups, with about as many blocks as may be read
// or moved between syncs.
func (v *Volume) some(l *layerFile, groups []uint32) []uint32 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	blocks, most := int64(0), v.pace.step(v.tuning.moveBlocks)
	for i, g := range groups {
		if blocks += int64(l.groups[g].blocks); blocks >= most || i+1 == pagesAtOnce {
			return groups[:i+1]
		}
	}
	return groups
}

// widen sets the size of a layer in the chain.
func (v *Volume) widen(l *layerFile, size int64) error {
	err := v.changeRecord(l, func(r *layerRecord) { r.Size = size })
	if err == nil {
		l.size = size
	}
	return err
}

// move moves what from says in some groups to its neighbour to. down says that
// to is the lower one. Where both say something, the upper one counts.
func (v *Volume) move(from, to *layerFile, groups []uint32, down bool) error {
	var arrive, leave []pageWrite
	var before []kindBits
	for _, g := range groups {
		w, err := v.copyPage(from, to, g, down)
		if err != nil {
			return err
		}
		arrive = append(arrive, w)
		w, err = from.nextVersion(g)
		if err != nil {
			return err
		}
		before = append(before, w.page.Kinds)
		w.page.Kinds = kindBits{}
		leave = append(leave, w)
	}
	if err := v.sync(to.data); err != nil {
		return err
	}
	if err := v.syncMap(to); err != nil { // the checksums
		return err
	}
	if err := v.putPages(arrive); err != nil {
		return err
	}
	if err := v.putPages(leave); err != nil {
		return err
	}
	v.commitMoved(append(arrive, leave...))
	v.meta.Lock()
	for _, g := range groups {
		v.live.replace(int64(g)*pageBlocks, int64(g+1)*pageBlocks, from.slot, to.slot)
	}
	v.meta.Unlock()
	return v.punchGone(leave, before)
}

// copyPage copies the blocks that a group is to get into its data file, and
// returns the page that will name them. Their checksums are checked on the way.
func (v *Volume) copyPage(from, to *layerFile, g uint32, down bool) (pageWrite, error) {
	src, err := from.nextVersion(g)
	if err != nil {
		return pageWrite{}, err
	}
	dst, err := to.nextVersion(g)
	if err != nil {
		return pageWrite{}, err
	}
	var srcSums, dstSums sums
	if err := from.readSums(g, src.page.Sums, src.page.SumsCRC, &srcSums); err != nil {
		return pageWrite{}, err
	}
	if err := to.readSums(g, dst.page.Sums, dst.page.SumsCRC, &dstSums); err != nil {
		return pageWrite{}, err
	}
	moved := src.page.Kinds
	if !down {
		moved.except(&dst.page.Kinds)
	}
	dst.page.Kinds.overlay(&moved)
	first := int64(g) * pageBlocks
	err = from.eachData(g, &moved, func(i int, b []byte) error {
		if err := srcSums.check(from, g, i, b); err != nil {
			return err
		}
		copy(dstSums[i:], srcSums[i:i+len(b)/BlockSize])
		return to.data.writeAt(b, (first+int64(i))*BlockSize)
	})
	if err != nil {
		return pageWrite{}, err
	}
	return dst, dst.putSums(&dstSums)
}

// overlay sets the blocks that over says something about.
func (k *kindBits) overlay(over *kindBits) {
	for i, w := range over {
		s := says(w)
		k[i] = k[i]&^(s|s<<1) | w
	}
}

// except clears the blocks that other says something about.
func (k *kindBits) except(other *kindBits) {
	for i, w := range other {
		s := says(w)
		k[i] &^= s | s<<1
	}
}

// unlink takes an empty layer out of the chain. If it was the upper one of the
// two, the lower one ends at its boundary now.
func (v *Volume) unlink(empty, lower, upper *layerFile) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.goOn(); err != nil {
		return err
	}
	at, below := slices.Index(v.files, upper), slices.Index(v.files, lower)
	c := v.chain.edit(func(c *chain) { c.join(at, empty == upper) })
	if err := v.replaceChain(c); err != nil {
		return err
	}
	v.mu.Lock()
	v.chain = c
	v.files = slices.Clone(v.files)
	if empty == upper {
		v.files[at] = lower
		if a := v.anchors[upper]; a != nil {
			v.anchors[lower] = a
		}
	}
	v.files = slices.Delete(v.files, below, below+1)
	delete(v.anchors, empty)
	v.mu.Unlock()
	if empty == upper {
		lower.size = c.Layers[at-1].Size
	}
	v.grace.wait()
	v.dropLayer(empty)
	return nil
}
