package layers

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// V3: what a snapshot alone holds is what comes back when it is deleted, in a
// tree with branches, marks, discards and a head that is written to.
func TestExclusive(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		for round := range uint64(6) {
			r := rand.New(rand.NewPCG(seed, round))
			m := newModel(t, osDisk{t.TempDir()}, r, 200*BlockSize, smallTuning)
			for range 60 {
				switch n := r.IntN(10); {
				case n < 5:
					m.write()
				case n < 6:
					m.zero()
				case n < 8:
					m.snapshot()
				case n < 9:
					m.revert()
				default:
					m.delete()
				}
				exclusiveOf(t, m.v) // must not spoil what comes later
			}
			for i := m.pick(false); i >= 0; i = m.pick(false) {
				settle(t, m.v)
				id, before := m.marks[i].id, m.v.Usage().Allocated
				want, ok := exclusiveOf(t, m.v)[id]
				if !ok {
					t.Fatalf("round %d: the figure of %s is not known", round, id)
				}
				if err := m.v.DeleteSnapshot(id, r.IntN(2) == 0); err != nil {
					t.Fatal(err)
				}
				m.marks = slices.Delete(m.marks, i, i+1)
				settle(t, m.v)
				if got := before - m.v.Usage().Allocated; got != want {
					t.Fatalf("round %d: %d blocks came back, want %d", round, got/BlockSize, want/BlockSize)
				}
			}
			if err := m.v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func settle(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.checkpoint(); err != nil {
		t.Fatal(err)
	}
	mustTidy(t, v)
}

func exclusiveOf(t *testing.T, v *Volume) map[ID]int64 {
	t.Helper()
	known, err := v.Exclusive()
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// V3: the figure of the newest snapshot follows the live volume at once.
func TestExclusiveFollowsTheHead(t *testing.T) {
	v, _ := newVolume(t, 1<<16)
	writeBlocks(t, v, 1, 0, 100)
	writeBlocks(t, v, 1, 20000, 100)
	id := takeSnapshot(t, v)
	want := int64(0)
	for _, b := range []int64{50, 50, 150, 20010, 40000} {
		if got, ok := exclusiveOf(t, v)[id]; got != want*BlockSize || !ok {
			t.Fatalf("before block %d is written it holds %d, want %d", b, got, want*BlockSize)
		}
		writeBlocks(t, v, 2, b, 1)
		want = map[int64]int64{50: 1, 150: 1, 20010: 2, 40000: 2}[b]
	}
	if got := exclusiveOf(t, v)[id]; got != 2*BlockSize {
		t.Errorf("it holds %d, want %d", got, 2*BlockSize)
	}
}

// A failed disk, background work and the journal are told.
func TestState(t *testing.T) {
	v, _ := newVolume(t, 256)
	writeBlocks(t, v, 1, 0, 10)
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	s, err := v.State()
	if err != nil || s.Layers != 1 || s.Journal == 0 || s.JournalSize == 0 || s.Failure != nil || s.Unsummed != 0 {
		t.Errorf("state %+v, %v", s, err)
	}
	clone, _ := cloneOf(t, v, takeSnapshot(t, v))
	if s, err = v.State(); err != nil || s.Layers != 2 || s.Shared != 1 || s.Unsummed != 1 {
		t.Errorf("state %+v, %v of an origin", s, err)
	}
	mustTidy(t, clone)
	if s, err = clone.State(); err != nil || s.Layers != 2 || s.Shared != 1 || s.Unsummed != 0 {
		t.Errorf("state %+v, %v of a clone", s, err)
	}
}

// V3, S6: with a thousand snapshots the figures may be asked for every second.
func TestFiguresAreCheap(t *testing.T) {
	v, err := Create(filepath.Join(t.TempDir(), "v"), NewID(), 1<<30, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	const count = 1000
	r := rand.New(rand.NewPCG(1, 1))
	for i := range count {
		writeBlocks(t, v, byte(i), r.Int64N(1<<18-8), 8)
		takeSnapshot(t, v)
	}
	mustTidy(t, v)
	least := time.Hour
	for range 5 { // the machine may do other things
		begin := time.Now()
		known := exclusiveOf(t, v)
		if list := v.Boundaries(); len(list) != count || len(known) != count {
			t.Fatalf("%d boundaries and %d figures, want %d", len(list), len(known), count)
		}
		if _, err := v.State(); err != nil || v.Usage().Allocated == 0 {
			t.Fatalf("usage %+v, %v", v.Usage(), err)
		}
		least = min(least, time.Since(begin))
	}
	t.Logf("%v for all figures of %d snapshots", least, count)
	if least > time.Second {
		t.Errorf("the figures took %v: too much for every second", least)
	}
}

func BenchmarkFigures(b *testing.B) {
	v := benchVolume(b, 1000)
	for _, f := range []struct {
		name string
		ask  func() error
	}{
		{"Exclusive", func() error { _, err := v.Exclusive(); return err }},
		{"Boundaries", func() error { v.Boundaries(); return nil }},
		{"Usage", func() error { v.Usage(); return nil }},
		{"State", func() error { _, err := v.State(); return err }},
	} {
		b.Run(fmt.Sprint(f.name), func(b *testing.B) {
			for b.Loop() {
				if err := f.ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
