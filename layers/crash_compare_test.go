package layers

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
)

// inspect opens the volume that a crash left and compares it with what it may
// be.
func (c *crashModel) inspect(d *memDisk, r *rand.Rand) {
	c.t.Helper()
	if r.IntN(4) == 0 {
		d = c.crashAgain(d, r)
	}
	c.compare(d)
	if c.t.Failed() {
		c.t.Fatalf("at operation %d, during %s", c.ops, c.during)
	}
	if r.IntN(4) > 0 {
		return
	}
	// And once more, after everything was tidied up and closed.
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Fatalf("open after a crash and a close, during %s: %v", c.during, err)
	}
	if err := errors.Join(v.tidy(), leaked(v), v.Close()); err != nil {
		c.t.Fatalf("tidy and close after a crash, during %s: %v", c.during, err)
	}
	c.compare(d)
	if c.t.Failed() {
		c.t.Fatalf("at operation %d, during %s, tidied up", c.ops, c.during)
	}
}

// leaked returns an error if a layer has space that its map does not name.
func leaked(v *Volume) error {
	for _, l := range v.files {
		st, err := l.data.stat()
		if err != nil {
			return err
		}
		if blocks, _ := l.usage(); st.allocated > blocks*BlockSize {
			return fmt.Errorf("layer %s has %d blocks and takes %d", l.id, blocks, st.allocated/BlockSize)
		}
	}
	return nil
}

// crashAgain crashes once more while the volume is being opened.
func (c *crashModel) crashAgain(d *memDisk, r *rand.Rand) *memDisk {
	at, n := r.IntN(60), 0
	var again *memDisk
	d.hook = func() {
		if n == at {
			again = d.crash(r)
		}
		n++
	}
	v, err := openVolume(d, Options{}, smallTuning)
	d.hook = nil
	if err != nil {
		c.t.Fatalf("open after a crash, during %s: %v", c.during, err)
	}
	if again == nil {
		again = d.crash(r)
	}
	v.closed.Store(true)
	return again
}

func (c *crashModel) compare(d *memDisk) {
	c.t.Helper()
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Errorf("open after a crash: %v", err)
		return
	}
	if err := sound(v); err != nil {
		c.t.Errorf("check after a crash: %v", err)
	}
	c.compareLive(v)
	c.compareBoundaries(v)
	if err := v.Close(); err != nil {
		c.t.Errorf("close after a crash: %v", err)
	}
}

func (c *crashModel) compareLive(v *Volume) {
	c.t.Helper()
	if !slices.Contains(c.sizes, v.Size()) {
		c.t.Errorf("size %d after a crash, want one of %d", v.Size(), c.sizes)
		return
	}
	if c.turning != nil {
		c.compareTurned(v)
		return
	}
	for _, s := range c.spans(v.Size()) {
		got := make([]byte, s.end-s.start)
		if _, err := v.ReadAt(got, s.start); err != nil {
			c.t.Errorf("read after a crash: %v", err)
			return
		}
		for b := s.start / BlockSize; b < blocksOf(s.end); b++ {
			may := c.past[b]
			if may == nil {
				may = [][]byte{blockOf(c.live, b)}
			}
			have := blockOf(got, b-s.start/BlockSize)
			if !slices.ContainsFunc(may, func(p []byte) bool { return sameButTail(p, have) }) {
				c.t.Errorf("block %d is none of the %d contents that it may have", b, len(may))
				return
			}
		}
	}
}

// compareTurned checks that a volume is wholly reverted, with its safety
// snapshot, or not at all.
func (c *crashModel) compareTurned(v *Volume) {
	c.t.Helper()
	want := c.live
	if slices.ContainsFunc(v.Boundaries(), func(b Boundary) bool { return b.ID == c.making.id }) {
		want = c.turning
	}
	got := make([]byte, len(want))
	if _, err := v.ReadAt(got, 0); err != nil {
		c.t.Errorf("read after a crash: %v", err)
	} else if at := differ(got, want); at >= 0 {
		c.t.Errorf("half reverted: differs at %d", at)
	}
}

// sameButTail reports whether a and b are the same where both are, and the rest
// of the longer is zeros: the volume may have grown.
func sameButTail(a, b []byte) bool {
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n]) && isZero(a[n:]) && isZero(b[n:])
}

func (c *crashModel) compareBoundaries(v *Volume) {
	c.t.Helper()
	var have []modelSnapshot
	list := v.Boundaries()
	for i, s := range c.marks {
		at := slices.IndexFunc(list, func(b Boundary) bool { return b.ID == s.id })
		switch {
		case at < 0 && i != c.leaving:
			c.t.Errorf("boundary %s is lost", s.id)
		case at < 0:
		case list[at].Mark != s.mark && i != c.leaving:
			c.t.Errorf("boundary %s: mark %v, want %v", s.id, list[at].Mark, s.mark)
		default:
			s.mark = list[at].Mark
			have = append(have, s)
		}
	}
	if c.making != nil && slices.ContainsFunc(list, func(b Boundary) bool { return b.ID == c.making.id }) {
		have = append(have, *c.making)
	}
	if len(have) != len(list) {
		c.t.Errorf("%d boundaries, want %d", len(list), len(have))
	}
	for _, to := range have {
		if to.mark {
			continue
		}
		w, err := v.View(to.id)
		if err != nil {
			c.t.Errorf("view after a crash: %v", err)
			continue
		}
		c.checkView(w, to.data)
		w.Close()
		for _, from := range have {
			w, err := v.Diff(from.id, to.id)
			if err != nil {
				c.t.Errorf("diff after a crash: %v", err)
				continue
			}
			c.checkDiff(w, from.data, to.data)
			w.Close()
		}
	}
}
