package layers

import (
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fullIf lets writes of layers fail with ENOSPC as long as full says so.
func fullIf(full func() bool) func(op, name string) error {
	return func(op, name string) error {
		if _, layer := layerOfName(name); layer && op == "write" && full() {
			return syscall.ENOSPC
		}
		return nil
	}
}

// S3: tidying that a full disk has ended goes on by itself when there is space
// again.
func TestTidyAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDisk()
		if err := createVolume(d, NewID(), 64*BlockSize, smallTuning); err != nil {
			t.Fatal(err)
		}
		tune := smallTuning
		tune.background = true
		v, err := openVolume(d, Options{}, tune)
		if err != nil {
			t.Fatal(err)
		}
		writeBlocks(t, v, 1, 0, 8)
		id := takeSnapshot(t, v)
		writeBlocks(t, v, 2, 4, 8)
		takeSnapshot(t, v)
		synctest.Wait()
		var full atomic.Bool
		tried := atomic.Int64{}
		d.fail = fullIf(func() bool { tried.Add(1); return full.Load() })
		full.Store(true)
		if err := v.DeleteSnapshot(id, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		if n := len(v.files); n != 3 {
			t.Fatalf("%d layers on a full disk, want 3", n)
		}
		if n := tried.Load(); n < 5 || n > 100 {
			t.Errorf("%d writes were tried in ten minutes on a full disk, want some", n)
		}
		full.Store(false)
		time.Sleep(lastRetry)
		synctest.Wait()
		if n := len(v.files); n != 2 {
			t.Errorf("%d layers when there is space again, want 2", n)
		}
		if err := sound(v); err != nil {
			t.Error(err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
}

// V2, S3: what the head hides comes back when a snapshot is given up, also if no
// checkpoint is due.
func TestDeletionMakesTheHeadDurable(t *testing.T) {
	m := newModel(t, newMemDisk(), rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	writeBlocks(t, m.v, 1, 0, 8)
	id := takeSnapshot(t, m.v)
	mustTidy(t, m.v)
	writeBlocks(t, m.v, 2, 0, 8)
	if err := m.v.Flush(); err != nil { // a record of the journal
		t.Fatal(err)
	}
	mustTidy(t, m.v)
	if err := m.v.DeleteSnapshot(id, false); err != nil {
		t.Fatal(err)
	}
	mustTidy(t, m.v)
	if got := m.v.Usage().Allocated; got != 8*BlockSize {
		t.Errorf("%d blocks are taken, want 8", got/BlockSize)
	}
}

// A1: a step of tidying waits for its turn, and closing the volume waits for none.
func TestTidyTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDisk()
		if err := createVolume(d, NewID(), 64*BlockSize, smallTuning); err != nil {
			t.Fatal(err)
		}
		tune := smallTuning
		tune.background = true
		var under atomic.Int64
		may := make(chan struct{}) // closed while tidying may go on
		v, err := openVolume(d, Options{Turn: func(stop <-chan struct{}) func() {
			select {
			case <-may:
				under.Add(1)
				return func() { under.Add(-1) }
			case <-stop:
				return nil
			}
		}}, tune)
		if err != nil {
			t.Fatal(err)
		}
		writeBlocks(t, v, 1, 0, 8)
		id := takeSnapshot(t, v)
		writeBlocks(t, v, 2, 4, 8)
		takeSnapshot(t, v)
		if err := v.DeleteSnapshot(id, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(v.files); n != 3 {
			t.Errorf("%d layers while it is nobody's turn, want 3", n)
		}
		close(may)
		synctest.Wait()
		if n := len(v.files); n != 2 || under.Load() != 0 {
			t.Errorf("%d layers and %d steps under way when tidying had its turns, want 2 and none", n, under.Load())
		}
		may = make(chan struct{})
		v.Tidy()
		synctest.Wait()
		if err := v.Close(); err != nil {
			t.Errorf("close while tidying waits for its turn: %v", err)
		}
	})
}
