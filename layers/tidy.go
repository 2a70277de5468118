package layers

import (
	"errors"
	"slices"
)

// Tidying gives back what no reader needs, in the background and in small steps,
// each of which leaves a chain that says the same:
//
//	settle   a checkpoint, so that the journal has no record of a sealed layer
//	sum      checksums for the blocks of sealed layers
//	own      a layer that no clone shares any more is this volume's alone
//	hide     where a boundary is given up, what the layers above hide is dropped
//	merge    where a layer ends at no boundary, it and its upper neighbour become
//	         one; the smaller's blocks move into the larger
//
// Of a layer that other volumes share only the checksums are made: see clone.go.
// A boundary is kept while it is a snapshot or a view of it is open. Only sealed
// layers are touched, so the layer right below the head waits for a seal.
//
// Blocks are taken away in this order: what replaces them is durable; the map
// without them is durable; nobody can find them in memory; readers that had
// found them are gone; the space is punched out. A crash between any two leaves
// blocks that are there twice, or space that nothing names, and the next tidying
// does away with both.

// errStop ends tidying because the volume is being closed.
var errStop = errors.New("stopped")

// runTidy tidies whenever somebody gave something up.
func (v *Volume) runTidy() {
	defer v.background.Done()
	kick(v.wantTidy)
	for {
		select {
		case <-v.stop:
			return
		case <-v.wantTidy:
		}
		if err := v.tidy(); err != nil && !errors.Is(err, errStop) {
			v.log.Warn("space that nothing needs could not be given back yet", "volume", v.id, "error", err)
		}
	}
}

// tidy takes steps until there is nothing left to do.
func (v *Volume) tidy() error {
	for {
		did, err := v.tidyStep()
		if err != nil || !did {
			return err
		}
	}
}

// tidyStep does the first thing that it finds to do.
func (v *Volume) tidyStep() (did bool, err error) {
	v.meta.Lock()
	settled := len(v.unsettled) == 0
	v.meta.Unlock()
	if !settled {
		return true, v.checkpoint()
	}
	v.tidying.Lock()
	defer v.tidying.Unlock()
	if err := v.goOn(); err != nil {
		return false, err
	}
	links, err := v.links()
	if err != nil {
		return false, err
	}
	for _, step := range []func([]link) (bool, error){v.sumStep, v.ownStep, v.hideStep, v.mergeStep} {
		if did, err := step(links); did || err != nil {
			return did, err
		}
	}
	return false, nil
}

// goOn returns an error if background work must end.
func (v *Volume) goOn() error {
	if v.closed.Load() {
		return errStop
	}
	return v.failure()
}

// link is a sealed layer of the stack as tidying sees it.
type link struct {
	*layerFile
	size  int64
	kept  bool // readers need the boundary above: snapshot or view
	bound bool // there is a boundary: kept, or a mark

	shared bool // the chain says that other volumes may have the files
	lent   bool // they do: nothing may be taken away
}

// links lists the sealed and settled layers from the root up. The caller holds
// tidying, so nobody here shares one of them meanwhile; and a layer that no other
// volume has, none can share.
func (v *Volume) links() ([]link, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	v.meta.Lock()
	defer v.meta.Unlock()
	var list []link
	for i, l := range v.stack[:len(v.stack)-1] {
		if slices.Contains(v.unsettled, l) {
			break
		}
		r := v.chain.Layers[i]
		a := v.anchors[l]
		viewed := a != nil && a.views > 0
		lent, err := r.lent(l)
		if err != nil {
			return nil, err
		}
		list = append(list, link{
			layerFile: l, size: r.Size, shared: r.Shared, lent: lent,
			kept: r.Flags == flagSnapshot || viewed, bound: r.Flags != 0 || viewed,
		})
	}
	return list, nil
}

// pagesAtOnce bounds the pages that one step writes, so that closing the volume
// need not wait long.
const pagesAtOnce = 64

func (v *Volume) sumStep(links []link) (bool, error) {
	for _, l := range links {
		if l.summed {
			continue
		}
		groups := l.unsummed()
		if len(groups) == 0 {
			l.summed = true
			continue
		}
		return true, v.sumPages(l.layerFile, groups[:min(len(groups), pagesAtOnce)])
	}
	return false, nil
}

// hideStep drops what nobody can see any more in one layer whose boundary is
// not kept.
func (v *Volume) hideStep(links []link) (bool, error) {
	for i, l := range links {
		if l.kept || l.lent || i+1 == len(links) {
			continue
		}
		// near hides without a trace; what only far hides is remembered as
		// dropped, for diffs from the marks between.
		near, far := links[i+1:i+1], links[i+1:]
		if !l.bound {
			near = upTo(links[i+1:], func(l link) bool { return l.bound })
		}
		far = upTo(far, func(l link) bool { return l.kept })
		key := hideKey{near: len(near), top: far[len(far)-1].id, done: true}
		if l.hidden == key {
			continue
		}
		if err := v.hide(l.layerFile, near, far); err != nil {
			return false, err
		}
		l.hidden = key
		return true, nil
	}
	return false, nil
}

// hideKey says by what a layer's blocks were last found to be hidden.
type hideKey struct {
	near int
	top  ID
	done bool
}

// upTo returns the links up to the first for which last is true, which is in.
func upTo(links []link, last func(link) bool) []link {
	for i, l := range links {
		if last(l) {
			return links[:i+1]
		}
	}
	return links
}

func (v *Volume) hide(l *layerFile, near, far []link) error {
	groups := l.present()
	for len(groups) > 0 {
		if err := v.goOn(); err != nil {
			return err
		}
		n := min(len(groups), pagesAtOnce)
		if err := v.hidePages(l, groups[:n], near, far); err != nil {
			return err
		}
		groups = groups[n:]
	}
	return nil
}

func (v *Volume) hidePages(l *layerFile, groups []uint32, near, far []link) error {
	var writes []pageWrite
	var gone []kindBits // what was data before
	for _, g := range groups {
		nearSays, err := unionOf(near, g)
		if err != nil {
			return err
		}
		farSays, err := unionOf(far, g)
		if err != nil {
			return err
		}
		w, err := l.nextVersion(g)
		if err != nil {
			return err
		}
		before := w.page.Kinds
		w.page.Kinds.hide(nearSays, farSays)
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

// unionOf returns the low bit of each pair of the blocks that any of the layers
// says something about.
func unionOf(links []link, g uint32) (*[pageWords]uint64, error) {
	var union [pageWords]uint64
	for _, l := range links {
		var kinds kindBits
		if _, err := l.load(g, &kinds); err != nil {
			return nil, err
		}
		for i, w := range kinds {
			union[i] |= says(w)
		}
	}
	return &union, nil
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
