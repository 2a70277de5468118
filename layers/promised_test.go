package layers

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// errEnded is what a test of a failure panics with where another one fails: an
// operation was refused, so the history is over.
var errEnded = errors.New("the history is over")

// endedTB ends a history where an operation fails.
type endedTB struct {
	testing.TB
	over bool
}

func (e *endedTB) Fatal(args ...any) {
	e.Helper()
	if e.over {
		panic(errEnded)
	}
	e.TB.Fatal(args...)
}

func (e *endedTB) Fatalf(format string, args ...any) {
	e.Helper()
	if e.over {
		panic(errEnded)
	}
	e.TB.Fatalf(format, args...)
}

// V9, S1, S5: at each place where the disk can say that it did not write, it says
// so, and the system keeps nothing of what was not synced. What is read from then
// on is what the next open finds: each block holds what was flushed last or what
// was written since, and every snapshot is whole.
func TestReadsAfterFailure(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		failures := 0
		for at := 1; failAt(t, seed, at); at += 2*sparse - 1 {
			failures++
		}
		if failures < 50/sparse {
			t.Errorf("the disk failed at %d places only", failures)
		}
		t.Logf("the disk failed at %d places", failures)
	})
}

// failAt lets the disk fail at one of the places in a history. It returns false
// if the history is over before.
func failAt(t *testing.T, seed uint64, at int) (failed bool) {
	c := newCrashModel(t, seed, 40*BlockSize+1536, 1<<40)
	over := &endedTB{TB: t}
	c.t = over
	lost := rand.New(rand.NewPCG(seed, uint64(at)))
	places, all := 0, lost.IntN(2) == 0 // all: the file system takes nothing any more; else one file has lost something
	c.disk.fail = func(op, name string) error {
		switch {
		case over.over && all && op != "read" && op != "list":
			return syscall.EIO
		case op != "sync" && op != "write back" && op != "write error":
			return nil
		}
		if places++; places != at {
			return nil
		}
		over.over = true
		if all {
			name = ""
		}
		c.disk.lose(name, lost)
		return syscall.EIO
	}
	c.history(120)
	if !over.over {
		return false
	}
	c.t = t
	if !c.v.closed.Load() {
		if c.v.Failure() != nil {
			c.compareLive(c.v)
			c.compareBoundaries(c.v)
		}
		c.v.Close() // says once more that it failed
	}
	c.disk.fail = nil
	c.compare(c.disk)
	if t.Failed() {
		t.Fatalf("the disk failed at place %d, during %s", at, c.during)
	}
	return true
}

// history takes steps, until one fails.
func (c *crashModel) history(steps int) {
	defer func() {
		if r := recover(); r != nil && r != errEnded {
			panic(r)
		}
	}()
	for range steps {
		c.step()
	}
}

// V9: clients that write parts of blocks, flush and read side by side all get
// their answers when the disk fails below them, and from then on each reads what
// was flushed last, or what was written since.
func TestReadersWhileDiskFails(t *testing.T) {
	for at := range 12 {
		d := newMemDisk()
		tune := smallTuning
		tune.background = true
		if err := createVolume(d, NewID(), 64*BlockSize, tune); err != nil {
			t.Fatal(err)
		}
		var syncs atomic.Int64
		lost := rand.New(rand.NewPCG(1, uint64(at)))
		d.fail = func(op, name string) error {
			if op != "sync" && op != "write back" {
				return nil
			}
			switch n := syncs.Add(1); {
			case n == int64(20+7*at):
				d.lose("", lost)
				return syscall.EIO
			case n > int64(20+7*at):
				return syscall.EIO
			}
			return nil
		}
		v, err := openVolume(d, Options{}, tune) // after fail is set: it works in the background at once
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for client := range int64(4) {
			group.Go(func() { failingClient(t, v, client) })
		}
		group.Wait()
		if err := v.Close(); !errors.Is(err, syscall.EIO) {
			t.Errorf("close: %v", err)
		}
	}
}

// failingClient counts up in the middle of blocks of its own until the disk
// fails.
func failingClient(t *testing.T, v *Volume, client int64) {
	const blocks = 8
	var flushed, written [blocks]byte
	place := func(b int) int64 { return (int64(b)*4+client)*BlockSize + 1000 }
	for round := byte(1); v.Failure() == nil; round = max(round+1, 1) {
		for b := range written {
			if _, err := v.WriteAt([]byte{round, round}, place(b)); err != nil {
				break
			}
			written[b] = round
			var got [2]byte
			if _, err := v.ReadAt(got[:], place(b)); err != nil {
				t.Errorf("read: %v", err)
			}
		}
		if v.Flush() == nil {
			flushed = written
		}
	}
	for b := range written {
		var got [2]byte
		_, err := v.ReadAt(got[:], place(b))
		if err != nil || got[0] != got[1] || got[0] != flushed[b] && got[0] != written[b] {
			t.Errorf("client %d, block %d: reads %v, %v; %d was flushed, %d written", client, b, got, err, flushed[b], written[b])
		}
	}
}
