package nbd

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestBudget: claims are granted in order, up to the limit, and one that is
// larger than the limit when it is alone.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var relieved atomic.Int32
		b := &budget{limit: 10, after: time.Second, relieve: func() { relieved.Add(1) }}
		never := make(chan struct{})
		if !b.take(6, never) || !b.take(4, never) {
			t.Fatal("what fits is not granted")
		}
		granted := make(chan int64, 3)
		gone := make(chan struct{})
		abandoned := make(chan bool)
		go func() { abandoned <- b.take(5, gone) }()
		synctest.Wait()
		for _, n := range []int64{3, 20} {
			go func() { b.take(n, never); granted <- n }()
			synctest.Wait()
		}
		time.Sleep(3*time.Second + time.Millisecond)
		if len(granted) != 0 || relieved.Load() < 3 {
			t.Errorf("%d granted beyond the limit; relieve was called %d times", len(granted), relieved.Load())
		}
		b.give(4) // for 3, but 5 came first
		synctest.Wait()
		if len(granted) != 0 {
			t.Error("a later claim was granted before an earlier one")
		}
		close(gone)
		if <-abandoned {
			t.Error("a claim that was given up is granted")
		}
		if n := <-granted; n != 3 {
			t.Errorf("%d granted, want 3", n)
		}
		b.give(6)
		synctest.Wait()
		if len(granted) != 0 {
			t.Error("more than the limit is granted beside others")
		}
		b.give(3)
		if n := <-granted; n != 20 {
			t.Errorf("%d granted, want 20", n)
		}
		b.give(20)
		if b.used != 0 {
			t.Errorf("%d bytes are used, want none", b.used)
		}
	})
}
