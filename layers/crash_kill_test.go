package layers

import (
	"fmt"
	"slices"
	"testing"
)

// V9, S3, S5: a process is killed at any operation on the disk and the next one
// goes on with what the system still has in memory. At each of its operations,
// those of opening too, the power may fail: then all is there that either was
// told or has read.
func TestPowerFailureAfterKills(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		kills, crashes := 0, 0
		for round := range uint64(4) {
			t.Run(fmt.Sprint(round), func(t *testing.T) {
				d := newMemDisk()
				c := newCrashModelOn(t, keepingDisk{d, "power"}, d, seed+round, 40*BlockSize+1536, 120)
				for range 24/sparse + 2 {
					if c.killed(c.r.IntN(40)) {
						kills++
						c.v.closed.Store(true)
						c.during += ", killed, and opened again"
						c.open()
						c.settle()
					}
				}
				crashes += c.crashes
			})
		}
		if kills < 4 {
			t.Errorf("%d kills only", kills)
		}
		t.Logf("%d kills, %d crashes", kills, crashes)
	})
}

// killed takes some steps and is killed at the operation of the disk that is left
// operations from now: it never gets an answer. It returns false if the steps end
// before.
func (c *crashModel) killed(left int) bool {
	crash := c.disk.hook
	defer func() { c.disk.hook, c.disk.fail = crash, nil }()
	kill, ended := make(chan struct{}), make(chan struct{})
	c.disk.hook = func() {
		crash()
		if left--; left < 0 {
			close(kill)
			select {}
		}
	}
	go func() {
		defer close(ended)
		for range 4 {
			c.step()
		}
	}()
	select {
	case <-kill:
		return true
	case <-ended:
		if c.t.Failed() {
			c.t.FailNow()
		}
		return false
	}
}

// settle takes what a process has found for what must be there from now on.
func (c *crashModel) settle() {
	c.t.Helper()
	c.compareLive(c.v)
	c.compareBoundaries(c.v)
	list := c.v.Boundaries()
	at := func(id ID) int { return slices.IndexFunc(list, func(b Boundary) bool { return b.ID == id }) }
	if c.leaving >= 0 {
		switch i := at(c.marks[c.leaving].id); {
		case i < 0:
			c.remove(c.leaving)
		default:
			c.marks[c.leaving].mark = list[i].Mark
		}
	}
	if c.making != nil {
		if i := at(c.making.id); i >= 0 {
			c.sealed(c.making.id)
			c.marks[len(c.marks)-1].data = c.making.data
			if c.turning != nil {
				c.below, c.dirty = c.turnTo, false
			}
		}
	}
	c.making, c.turning, c.leaving = nil, nil, -1
	found := make([]byte, c.v.Size())
	if _, err := c.v.ReadAt(found, 0); err != nil {
		c.t.Fatal(err)
	}
	c.live, c.dirty = found, true
	c.acknowledge()
}
