package layers

import (
	"context"
	"fmt"
)

// Sweeping gives back what the files of the layers have allocated and no map
// names: a crash between two steps leaves such blocks. After a crash it is a step
// of tidying, and each check does it again. layerFile.swept says how far it is.

// sweptAll is layerFile.swept of a layer that has nothing to be looked for.
const sweptAll = ^uint32(0)

func (v *Volume) sweepStep(t *tree) (bool, error) {
	for i := range t.links {
		l := &t.links[i]
		if l.swept == sweptAll || !l.sweepable() {
			continue
		}
		return true, v.sweepSome(l)
	}
	return false, nil
}

func (l *link) sweepable() bool { return (l.settled || l.head) && !l.lent }

// sweepAll sweeps all layers from the start. It returns about how many bytes
// came back.
func (v *Volume) sweepAll(ctx context.Context, layers []*layerFile) (freed int64, err error) {
	for _, l := range layers {
		n, err := v.sweepLayer(ctx, l)
		freed += n
		if err != nil {
			return freed, fmt.Errorf("layer %s: %w", l.id, err)
		}
	}
	return freed, nil
}

func (v *Volume) sweepLayer(ctx context.Context, l *layerFile) (freed int64, err error) {
	before, err := l.data.stat()
	if err != nil {
		return 0, err
	}
	for start, more := true, true; more; start = false {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if more, err = v.sweepMore(l, start); err != nil {
			return 0, err
		}
	}
	after, err := l.data.stat()
	return max(before.allocated-after.allocated, 0), err
}

// sweepMore is a step of sweepLayer. It returns whether there is more to do: not
// in a layer that is gone, or cannot be swept now.
func (v *Volume) sweepMore(l *layerFile, start bool) (more bool, err error) {
	v.tidying.Lock()
	defer v.tidying.Unlock()
	if err := v.goOn(); err != nil {
		return false, err
	}
	t, err := v.tree()
	if err != nil {
		return false, err
	}
	n := t.find(l)
	if n == nil || !n.sweepable() {
		return false, nil
	}
	if start {
		l.swept = 0
	}
	err = v.sweepSome(n)
	return l.swept != sweptAll, err
}

// find returns the link of a layer; nil if the chain does not have it any more.
func (t *tree) find(l *layerFile) *link {
	for i := range t.links {
		if t.links[i].layerFile == l {
			return &t.links[i]
		}
	}
	return nil
}

// sweepSome sweeps some groups, and notes how far it came. The caller holds
// tidying.
func (v *Volume) sweepSome(l *link) error {
	groups := groupsOf(l.size)
	for range pagesAtOnce {
		next, err := l.data.nextData(int64(l.swept) * pageBlocks * BlockSize)
		if err != nil {
			return err
		}
		g := next / (pageBlocks * BlockSize)
		if next < 0 || g >= int64(groups) {
			l.swept = sweptAll
			return nil
		}
		if err := v.sweepGroup(l, uint32(g)); err != nil {
			return err
		}
		l.swept = uint32(g) + 1
	}
	return nil
}

// sweepGroup punches what is allocated in a group and is not data. Of the head
// nothing is written meanwhile: data comes before the map.
func (v *Volume) sweepGroup(l *link, g uint32) error {
	if l.head {
		v.gate.Lock()
		defer v.gate.Unlock()
	}
	var kinds kindBits
	if _, err := l.load(g, &kinds); err != nil {
		return err
	}
	v.grace.wait() // for who found a block before it was taken away
	for i := 0; i < pageBlocks; {
		stop := kinds.run(i, pageBlocks)
		if kinds.at(i) != Data {
			off := (int64(g)*pageBlocks + int64(i)) * BlockSize
			if err := l.sweepRun(off, off+int64(stop-i)*BlockSize); err != nil {
				return err
			}
		}
		i = stop
	}
	return nil
}

// sweepRun punches [off, end) if there is anything in it.
func (l *layerFile) sweepRun(off, end int64) error {
	next, err := l.data.nextData(off)
	if err != nil || next < 0 || next >= end {
		return err
	}
	return l.data.punch(off, end-off)
}
