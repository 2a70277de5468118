package layers

import (
	"errors"
	"slices"
	"time"
)

// Tidying gives back what no reader needs, in the background and in small steps,
// each of which leaves a chain that says the same:
//
//	settle   a checkpoint, so that the journal has no record of a sealed layer
//	drop     a layer at the end of a branch that ends at no boundary
//	sum      checksums for the blocks of sealed layers
//	own      a layer that no clone shares any more is this volume's alone
//	hide     where a boundary is given up, what the layers above hide is dropped
//	merge    where a layer ends at no boundary, it and the only one above become
//	         one; the smaller's blocks move into the larger
//	sweep    after a crash: space that no map names
//	count    what each snapshot alone holds, for Exclusive
//
// Of a layer that other volumes share only the checksums are made: see clone.go.
// A boundary is kept while it is a snapshot or a view of it is open. Only sealed
// layers are changed, so the layer right below the head is not merged before a
// seal; but the head, as far as it is durable, hides what is below it.
//
// Blocks are taken away in this order: what replaces them is durable; the map
// without them is durable; nobody can find them in memory; readers that had
// found them are gone; the space is punched out. A crash between any two leaves
// blocks that are there twice, which hiding does away with, or space that nothing
// names, which sweeping does.

// errStop ends tidying because the volume is being closed.
var errStop = errors.New("stopped")

// Tidy asks the background work to look whether space can be given back, and
// returns at once. The volume does so by itself but after the removal of a clone,
// of which it does not know.
func (v *Volume) Tidy() { v.gaveUp() }

// gaveUp asks for tidying, since something has been given up. What the head
// hides of it is to be made durable first.
func (v *Volume) gaveUp() {
	v.covers.Store(true)
	kick(v.wantTidy)
}

// Tidying that ends with an error, as on a full disk, is tried again after a
// pause, which grows from the one to the other.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 2 * time.Minute
)

// runTidy tidies whenever somebody gave something up. On a disk that failed
// nothing is tried again: the volume takes no writes.
func (v *Volume) runTidy() {
	defer v.background.Done()
	kick(v.wantTidy)
	var again <-chan time.Time
	pause := firstRetry
	for {
		select {
		case <-v.stop:
			return
		case <-v.wantTidy:
		case <-again:
		}
		again = nil
		v.tidies.Store(true)
		err := v.tidy()
		v.tidies.Store(false)
		if err == nil {
			pause = firstRetry
		} else if v.goOn() == nil {
			v.log.Warn("space that nothing needs could not be given back yet; it is tried again", "volume", v.id, "after", pause, "error", err)
			again = time.After(pause)
			pause = min(2*pause, lastRetry)
		}
	}
}

// tidy takes steps until there is nothing left to do.
func (v *Volume) tidy() error {
	for {
		end, err := v.takeTurn()
		if err != nil {
			return err
		}
		began := time.Now()
		v.pace.working.Store(true)
		did, err := v.tidyStep()
		v.pace.working.Store(false)
		end()
		if err != nil || !did {
			return err
		}
		if pause := v.pace.pause(time.Since(began)); pause > 0 {
			select {
			case <-v.stop:
				return errStop
			case <-time.After(pause):
			}
		}
	}
}

// takeTurn returns when a step may begin.
func (v *Volume) takeTurn() (end func(), err error) {
	if v.turn == nil {
		return func() {}, nil
	}
	if end = v.turn(v.stop); end == nil {
		return nil, errStop
	}
	return end, nil
}

// tidyStep does the first thing that it finds to do.
func (v *Volume) tidyStep() (did bool, err error) {
	v.meta.Lock()
	settled := len(v.unsettled) == 0
	v.meta.Unlock()
	if v.covers.Swap(false) && v.covered() || !settled {
		if err := v.writeBack(); err != nil {
			return false, err
		}
		return true, v.checkpoint()
	}
	return v.changeStep()
}

// changeStep is a step that changes sealed layers. The head may have been sealed
// since tidyStep looked: a layer that the journal has records of stays as it is.
func (v *Volume) changeStep() (did bool, err error) {
	v.tidying.Lock()
	defer v.tidying.Unlock()
	if err := v.goOn(); err != nil {
		return false, err
	}
	t, err := v.tree()
	if err != nil {
		return false, err
	}
	for _, step := range []func(*tree) (bool, error){v.dropStep, v.sumStep, v.ownStep, v.hideStep, v.mergeStep, v.sweepStep, v.countStep} {
		if did, err := step(t); did || err != nil {
			return did, err
		}
	}
	return false, nil
}

// covered reports whether the head may hide something that nobody needs, and is
// not durable.
func (v *Volume) covered() bool {
	if !v.loose() {
		return false
	}
	v.meta.Lock()
	head := v.head
	v.meta.Unlock()
	return head.unwritten()
}

// loose reports whether the layer below the head ends at no boundary that is
// kept: what the head hides of it is needed by nobody, once the head is durable.
func (v *Volume) loose() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	at := v.chain.Layers[v.chain.Head].Parent
	return at >= 0 && v.chain.Layers[at].Flags != flagSnapshot
}

// goOn returns an error if background work must end.
func (v *Volume) goOn() error {
	if v.closed.Load() {
		return errStop
	}
	return v.Failure()
}

// pagesAtOnce bounds the pages that one step writes, so that closing the volume
// need not wait long.
const pagesAtOnce = 64

// dropStep removes one layer that nothing lies on and that ends at no boundary.
func (v *Volume) dropStep(t *tree) (bool, error) {
	for i := range t.links {
		if l := &t.links[i]; len(l.up) == 0 && !l.bound && l.settled {
			return true, v.cut(l.layerFile)
		}
	}
	return false, nil
}

// cut takes a layer that nothing lies on out of the chain.
func (v *Volume) cut(l *layerFile) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.goOn(); err != nil {
		return err
	}
	at := slices.Index(v.files, l)
	c := v.chain.edit(func(c *chain) { c.remove(at) })
	if err := v.replaceChain(c); err != nil {
		return err
	}
	v.mu.Lock()
	v.chain = c
	v.files = slices.Delete(slices.Clone(v.files), at, at+1)
	delete(v.anchors, l)
	v.mu.Unlock()
	v.grace.wait()
	v.dropLayer(l)
	return nil
}

func (v *Volume) sumStep(t *tree) (bool, error) {
	for i := range t.links {
		l := &t.links[i]
		if l.summed.Load() || !l.settled {
			continue
		}
		groups := l.unsummed()
		if len(groups) == 0 {
			l.summed.Store(true)
			continue
		}
		return true, v.sumPages(l.layerFile, v.some(l.layerFile, groups))
	}
	return false, nil
}
