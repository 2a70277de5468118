package layers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// family is a volume and its clones, each with a model, by turns the one that
// something is done to.
type family struct {
	t       *testing.T
	members []*model
	log     []string
}

// step does one random thing to one volume, or makes or removes a clone.
func (f *family) step(r *rand.Rand) {
	i := r.IntN(len(f.members))
	m := f.members[i]
	what := ""
	switch n := r.IntN(100); {
	case n < 2 && len(f.members) < 4:
		what = f.clone(m)
	case n < 3 && len(f.members) > 1:
		what = f.remove(i)
	default:
		what = m.step()
		m.checkLive()
	}
	f.log = append(f.log, fmt.Sprintf("%s: %s", m.d.path("."), what))
}

func (f *family) clone(m *model) string {
	i := m.pick(false)
	if i < 0 {
		return "clone nothing"
	}
	d := osDisk{f.t.TempDir()}
	if err := m.v.cloneTo(d, NewID(), m.marks[i].id); err != nil {
		f.t.Fatalf("clone: %v", err)
	}
	clone := &model{t: m.t, r: m.r, d: d, tune: m.tune, live: slices.Clone(m.marks[i].data), dirty: true}
	clone.open()
	f.members = append(f.members, clone)
	return fmt.Sprintf("clone of %s to %s", m.marks[i].id, d.dir)
}

func (f *family) remove(i int) string {
	m := f.members[i]
	m.closeViews()
	if err := errors.Join(m.v.Close(), Remove(m.d.path("."))); err != nil {
		f.t.Fatalf("remove: %v", err)
	}
	f.members = slices.Delete(f.members, i, i+1)
	return "remove"
}

func (f *family) checkAll() {
	f.t.Helper()
	for _, m := range f.members {
		m.checkAll()
	}
}

func (f *family) printLog() {
	if f.t.Failed() {
		for i, s := range f.log[max(0, len(f.log)-40):] {
			f.t.Log(i, s)
		}
	}
}

// V2, V4, V7, S3, S5, S9: random operations on a volume and its clones, compared
// with byte slices after each.
func TestModel(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		for round := range uint64(4) {
			t.Run(fmt.Sprint(round), func(t *testing.T) {
				size, steps := int64(300*BlockSize+1536), 600
				if round%2 == 1 {
					size, steps = size+(pageBlocks-200)*BlockSize, 60 // crosses a page
				}
				testFamily(t, rand.New(rand.NewPCG(seed, round)), size, steps)
			})
		}
	})
}

func testFamily(t *testing.T, r *rand.Rand, size int64, steps int) {
	f := &family{t: t}
	f.members = []*model{newModel(t, osDisk{t.TempDir()}, r, size, smallTuning)}
	defer f.printLog()
	for i := range steps {
		f.step(r)
		if i%8 == 0 {
			f.checkAll()
		}
	}
	for _, m := range f.members {
		m.tidy()
		m.checkAll()
		m.reopen()
		m.checkAll()
		m.closeViews()
	}
	for _, m := range f.members {
		if err := m.v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
