package layers

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A keepingDisk is a memDisk under a process that is killed: what was written is
// there, synced or not, until the power fails.
type keepingDisk struct {
	*memDisk
	power string
}

func (d keepingDisk) memory() string { return d.power }

// kill returns the disk as the next process finds it.
func (d keepingDisk) kill() keepingDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := newMemDisk()
	for name, f := range d.names {
		c := *f
		c.d, c.data, c.past, c.sizes = out.memWorld, bytes.Clone(f.data), map[int64][][]byte{}, []int64{int64(len(f.data))}
		out.names[name] = &c
	}
	return keepingDisk{out, d.power}
}

// A killModel is a volume beside what its clients were told.
type killModel struct {
	t         *testing.T
	r         *rand.Rand
	d         keepingDisk
	v         *Volume
	live      []byte
	snapshots map[ID][]byte
}

var killTuning = tuning{journalSmall: 128 << 10, journalLarge: 256 << 10, recordBlocks: 8, moveBlocks: 4}

func newKillModel(t *testing.T, r *rand.Rand) *killModel {
	t.Helper()
	m := &killModel{t: t, r: r, d: keepingDisk{newMemDisk(), "power 1"}, live: make([]byte, 64*BlockSize), snapshots: map[ID][]byte{}}
	if err := createVolume(m.d, NewID(), int64(len(m.live)), killTuning); err != nil {
		t.Fatal(err)
	}
	m.open()
	return m
}

func (m *killModel) open() {
	m.t.Helper()
	var err error
	if m.v, err = openVolume(m.d, Options{}, killTuning); err != nil {
		m.t.Fatal(err)
	}
}

// step does something at random and returns the range of bytes that it changes,
// with what they are afterwards.
func (m *killModel) step() (what string, off int, after []byte, act func() error) {
	n := 1 + m.r.IntN(6*BlockSize)
	off = m.r.IntN(len(m.live) - n)
	if m.r.IntN(2) == 0 {
		off, n = off/BlockSize*BlockSize, max(n/BlockSize, 1)*BlockSize
	}
	switch m.r.IntN(10) {
	case 0, 1, 2, 3, 4:
		p := bytes.Repeat([]byte{byte(1 + m.r.IntN(255))}, n)
		return "write", off, p, func() error { _, err := m.v.WriteAt(p, int64(off)); return err }
	case 5, 6:
		return "zero", off, make([]byte, n), func() error { return m.v.WriteZeroes(int64(off), int64(n)) }
	case 7:
		return "flush", 0, nil, m.v.Flush
	case 8:
		return "checkpoint", 0, nil, m.v.checkpoint
	default:
		id := NewID()
		m.snapshots[id] = bytes.Clone(m.live)
		return "snapshot", 0, nil, func() error { return m.v.Snapshot(id) }
	}
}

// check compares a volume with what was answered. Blocks that [off, off+len(after))
// touches may have either content.
func (m *killModel) check(v *Volume, during string, off int, after []byte) {
	m.t.Helper()
	got := make([]byte, len(m.live))
	if _, err := v.ReadAt(got, 0); err != nil {
		m.t.Fatal(err)
	}
	done := bytes.Clone(m.live)
	copy(done[off:], after)
	for b := 0; b < len(got); b += BlockSize {
		block := got[b : b+BlockSize]
		if !bytes.Equal(block, m.live[b:b+BlockSize]) && !bytes.Equal(block, done[b:b+BlockSize]) {
			m.t.Fatalf("killed during %s [%d, +%d): block %d is neither what was answered nor what was being written", during, off, len(after), b/BlockSize)
		}
	}
	for id, want := range m.snapshots {
		view, err := v.View(id)
		if err != nil {
			continue // The snapshot was being made.
		}
		if _, err := view.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			m.t.Fatalf("killed during %s: snapshot %s is another, %v", during, id, err)
		}
		view.Close()
	}
}

// TestKill: V9. A process that is killed between any two operations of the disk
// loses nothing that was answered, flushed or not: the kernel that has a
// file system on the volume lives on and counts on it.
func TestKill(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newKillModel(t, rand.New(rand.NewPCG(seed, 1)))
			for range 60 {
				what, off, after, act := m.step()
				// The disk as it was at some operation inside the step.
				var at *keepingDisk
				left := m.r.IntN(12)
				m.d.memWorld.hook = func() {
					if left--; left == 0 {
						killed := m.d.kill()
						at = &killed
					}
				}
				if err := act(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				m.d.memWorld.hook = nil
				if at != nil {
					v, err := openVolume(*at, Options{}, killTuning)
					if err != nil {
						t.Fatalf("killed during %s: %v", what, err)
					}
					m.check(v, what, off, after)
					v.Close()
				}
				copy(m.live[off:], after)
				if m.r.IntN(8) == 0 { // killed between two requests; the next goes on
					m.d = m.d.kill()
					m.open()
					m.check(m.v, "nothing", 0, nil)
				}
			}
		})
	}
}

// TestPowerFailureAfterKill: what the list says is worth nothing on a memory that
// has lost its content, and then the journal alone counts.
func TestPowerFailureAfterKill(t *testing.T) {
	m := newKillModel(t, rand.New(rand.NewPCG(1, 1)))
	write := func(b byte) {
		if _, err := m.v.WriteAt(bytes.Repeat([]byte{b}, BlockSize), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	if err := m.v.Flush(); err != nil {
		t.Fatal(err)
	}
	write(2)
	first := func(d keepingDisk) byte {
		v, err := openVolume(d, Options{}, killTuning)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		p := make([]byte, BlockSize)
		if _, err := v.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return p[0]
	}
	if got := first(m.d.kill()); got != 2 {
		t.Errorf("after a kill the block is %d, want 2", got)
	}
	failed := m.d.kill()
	failed.power = "power 2"
	if got := first(failed); got != 1 {
		t.Errorf("on another memory the block is %d, want what was flushed", got)
	}

	// Every entry and the header, cut and flipped, are believed or not, and never
	// harm what was flushed.
	for _, name := range recentNames {
		for i := range 160 {
			d := m.d.kill()
			f := d.names[name]
			if i >= len(f.data) {
				break
			}
			f.data[i] ^= 0x40
			v, err := openVolume(d, Options{}, killTuning)
			if errors.Is(err, ErrUnsupported) {
				continue // the version
			}
			if err != nil {
				t.Fatalf("%s, byte %d flipped: %v", name, i, err)
			}
			v.Close()
			d = m.d.kill()
			d.names[name].data = d.names[name].data[:i]
			if v, err = openVolume(d, Options{}, killTuning); err != nil {
				t.Fatalf("%s cut at %d: %v", name, i, err)
			}
			v.Close()
		}
	}
}

// TestFailedFlushKeepsRecent: what a flush could not make durable is still
// listed, beside what came after it.
func TestFailedFlushKeepsRecent(t *testing.T) {
	m := newKillModel(t, rand.New(rand.NewPCG(2, 1)))
	write := func(block int, b byte) {
		p := bytes.Repeat([]byte{b}, BlockSize)
		if _, err := m.v.WriteAt(p, int64(block)*BlockSize); err != nil {
			t.Fatal(err)
		}
		copy(m.live[block*BlockSize:], p)
	}
	for round := range 4 {
		write(round, byte(10+round))
		// A write while the flush is at work, and a kill before it has ended.
		killed := m.d
		m.d.memWorld.fail = func(op, name string) error {
			record := op == "write" && name == journalName
			settles := op == "sync" && strings.HasSuffix(name, ".data")
			if !record && !settles {
				return nil
			}
			m.d.memWorld.fail = nil
			write(9, byte(30+round))
			killed = m.d.kill()
			if round == 0 {
				return syscall.ENOSPC
			}
			return nil
		}
		if err := m.v.Flush(); (round == 0) != (err != nil) {
			t.Fatalf("flush %d: %v", round, err)
		}
		m.d.memWorld.fail = nil
		v, err := openVolume(killed, Options{}, killTuning)
		if err != nil {
			t.Fatal(err)
		}
		m.check(v, "a flush", 0, nil)
		v.Close()
		write(8, byte(20+round))
		after := m.d.kill()
		if v, err = openVolume(after, Options{}, killTuning); err != nil {
			t.Fatal(err)
		}
		m.check(v, "nothing", 0, nil)
		v.Close()
	}
}

// TestOutside cuts spans out of ranges.
func TestOutside(t *testing.T) {
	spans := spansOf([]entry{{Block: 10, Count: 5}, {Block: 20, Count: 1}, {Block: 12, Count: 4}})
	for _, c := range []struct {
		b, end int64
		want   map[int64]int64
	}{
		{0, 10, map[int64]int64{0: 10}},
		{0, 11, map[int64]int64{0: 10}},
		{10, 16, map[int64]int64{}},
		{11, 13, map[int64]int64{}},
		{15, 30, map[int64]int64{16: 20, 21: 30}},
		{16, 20, map[int64]int64{16: 20}},
		{5, 25, map[int64]int64{5: 10, 16: 20, 21: 25}},
		{30, 40, map[int64]int64{30: 40}},
	} {
		got := maps.Collect(outside(spans, c.b, c.end))
		if !maps.Equal(got, c.want) {
			t.Errorf("[%d, %d) outside %v: %v, want %v", c.b, c.end, spans, slices.Sorted(maps.Keys(got)), c.want)
		}
	}
}

// FuzzRecent: whatever the files hold, opening neither panics nor fails.
func FuzzRecent(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(make([]byte, recentHeader), make([]byte, recentHeader+recentEntry))
	f.Fuzz(func(t *testing.T, head, list []byte) {
		d := keepingDisk{newMemDisk(), "power"}
		volume := NewID()
		l, _, err := openRecent(d, volume, 64, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.start(); err != nil {
			t.Fatal(err)
		}
		// A header that counts, and entries as they come.
		l.files[1].writeAt(list, recentHeader)
		l.files[0].writeAt(head, recentHeader)
		_, entries, err := openRecent(d, volume, 64, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Block < 0 || e.Count == 0 || e.Block+int64(e.Count) > 64 || e.Kind > Zero {
				t.Fatalf("entry %+v of a volume of 64 blocks", e)
			}
		}
	})
}
