package layers

import (
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// blocksSent returns the blocks of data files that were sent to the disk since the
// last call, in that order.
func (w *memWorld) blocksSent() []int64 {
	var blocks []int64
	for _, s := range w.sent {
		for b := s.start; b < s.end; b++ {
			blocks = append(blocks, b)
		}
	}
	w.sent = nil
	return blocks
}

// Before a checkpoint the blocks that are in the journal alone are sent to the
// disk, of the head and of a layer that was just sealed, each once, in order.
func TestWriteBackSendsWhatWasFlushed(t *testing.T) {
	d := newMemDisk()
	v := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning).v
	write := func(b int64) {
		t.Helper()
		if _, err := v.WriteAt(make([]byte, BlockSize), b*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	writeBack := func(want ...int64) {
		t.Helper()
		if err := v.writeBack(); err != nil {
			t.Fatal(err)
		}
		if got := d.blocksSent(); !slices.Equal(got, want) {
			t.Errorf("blocks %v were sent, want %v", got, want)
		}
	}
	writeBack()
	for _, b := range []int64{9, 3, 5} {
		write(b)
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(7)                       // not flushed: there is time
	writeBack(3, 4, 5, 6, 7, 8, 9) // a portion is a range
	writeBack()

	write(20)
	if err := v.Snapshot(NewID()); err != nil {
		t.Fatal(err)
	}
	write(11)
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := v.writeBack(); err != nil {
		t.Fatal(err)
	}
	if got := d.blocksSent(); !slices.Contains(got, 20) || !slices.Contains(got, 11) {
		t.Errorf("blocks %v were sent, want those of the sealed layer and the head: 20, 11", got)
	}

	write(30)
	if err := errors.Join(v.Flush(), v.checkpoint()); err != nil {
		t.Fatal(err)
	}
	writeBack() // a checkpoint has left nothing
}

// The fuller the journal is the larger portions are; when it is nearly full they
// would take too long.
func TestPortionsFollowTheJournal(t *testing.T) {
	v := newModel(t, newMemDisk(), rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning).v
	ring := v.journal.ring()
	for _, c := range []struct{ used, want int64 }{
		{0, portionLeast}, {ring / 4, portionLeast}, {ring / 2, (portionLeast + portionMost) / 2},
		{ring / 4 * 3, portionMost}, {ring / 8 * 7, 0}, {ring, 0},
	} {
		v.journal.next.spent = v.journal.start.spent + c.used
		if got := v.portion(); got != c.want {
			t.Errorf("with %d of %d bytes alive a portion is %d blocks, want %d", c.used, ring, got, c.want)
		}
	}
	v.journal.next.spent = v.journal.start.spent
}

// What could not be sent may be lost, and the next sync need not say so again:
// the volume takes no more writes, as after a failed sync.
func TestFailedWriteBack(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	if _, err := m.v.WriteAt(m.live[:BlockSize], 0); err != nil {
		t.Fatal(err)
	}
	m.flush()
	d.fail = func(op, _ string) error {
		if op == "write back" {
			return syscall.EIO
		}
		return nil
	}
	if err := m.v.writeBack(); !errors.Is(err, ErrReadOnly) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v, want %v with the cause", err, ErrReadOnly)
	}
	d.fail = nil
	if err := m.v.checkpoint(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a checkpoint after it: %v, want %v", err, ErrReadOnly)
	}
	m.v.Close() // says the same
	m.open()
	m.checkAll()
}

// Write-back waits for a flush that is at the disk, but not for ever.
func TestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGap()
		took := func() time.Duration {
			began := time.Now()
			g.await()
			return time.Since(began)
		}
		if d := took(); d != 0 {
			t.Errorf("waited %v for no flush", d)
		}
		g.end()
		g.begin()
		g.end()
		if d := took(); d != gapLimit {
			t.Errorf("waited %v for a flush that does not end, want %v; the end of an earlier one says nothing", d, gapLimit)
		}
		go func() {
			time.Sleep(time.Millisecond)
			g.begin()
			g.end() // another follows at once
		}()
		if d := took(); d != time.Millisecond {
			t.Errorf("waited %v for a flush of 1ms", d)
		}
	})
}
