package object_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
)

// slow returns a Store whose calls take a second of the bubble's clock, and
// tell who they are.
func slow(began func(op, name string)) object.Store {
	return &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
		began(op, name)
		time.Sleep(time.Second)
		return nil
	}}
}

// Demand goes before a backup, a backup before upkeep, and yet nobody starves.
func TestGateClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order string
		s := object.Limit(slow(func(_, name string) {
			mu.Lock()
			defer mu.Unlock()
			order += name[:1]
		}), 1)
		var all sync.WaitGroup
		call := func(c object.Class, name string) {
			all.Go(func() {
				if err := s.Put(object.WithClass(t.Context(), c), name, nil); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // it is in the line
		}
		call(object.Copy, "first")
		for i := range 12 {
			call(object.Upkeep, fmt.Sprintf("u%d", i))
		}
		for i := range 12 {
			call(object.Copy, fmt.Sprintf("c%d", i))
		}
		all.Wait()
		if want := "fccccccuccccccuuuuuuuuuuu"; order[:15] != want[:15] {
			t.Errorf("let in: %s, want it to begin %s", order, want[:15])
		}
	})
}

// A mount need not wait for uploads that hold every place.
func TestGateDemandBeyond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := object.Limit(slow(func(_, _ string) {}), 2)
		for i := range 6 {
			go s.Put(object.WithClass(t.Context(), object.Copy), fmt.Sprint(i), nil)
		}
		synctest.Wait()
		start := time.Now()
		if _, err := s.Get(t.Context(), "none", nil, 0); err == nil {
			t.Error("no error")
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("a read beside uploads took %v, want 1s", took)
		}
		time.Sleep(time.Minute) // the bubble's clock: the uploads end
	})
}

// A server that is too busy gets half as much, and more again as it bears it.
func TestGateBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under, most, busy := 0, 0, true
		var mu sync.Mutex
		hook := &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			under--
			if busy {
				return &object.Error{Op: op, Name: name, Store: "test", Err: errors.New("429"), Temporary: true, Busy: true, RetryAfter: 5 * time.Second}
			}
			return nil
		}}
		gate := object.NewGate(16)
		s := gate.Store(hook)
		round := func() (peak int, took time.Duration) {
			most = 0
			start := time.Now()
			var all sync.WaitGroup
			for i := range 16 {
				all.Go(func() { s.Put(object.WithClass(t.Context(), object.Copy), fmt.Sprint(i), nil) })
			}
			all.Wait()
			return most, time.Since(start)
		}
		if peak, _ := round(); peak != 16 || gate.Places() != 8 {
			t.Errorf("at once: %d, then %d places; want 16, then 8: calls that began before the cut cut no more", peak, gate.Places())
		}
		// 8, then 4, 2, 1 and 1: before each the gate is closed for 5 s.
		if peak, took := round(); peak != 8 || took != 30*time.Second {
			t.Errorf("at once: %d in %v; want 8, and 30s", peak, took)
		}
		if gate.Places() != 1 {
			t.Errorf("%d places after refusals only, want 1", gate.Places())
		}
		busy = false
		for range 20 {
			round()
		}
		if peak, _ := round(); peak != 16 {
			t.Errorf("at once: %d long after the server is well again, want 16", peak)
		}
	})
}

// Bodies flow at the rate, in both directions, also when it changes under way,
// and a mount's go before a verification's.
func TestRates(t *testing.T) {
	const kib = 1 << 10
	synctest.Test(t, func(t *testing.T) {
		gate := object.NewGate(4)
		dir, err := object.CreateDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		s := gate.Store(dir)
		timed := func(what string, want time.Duration, call func() error) {
			t.Helper()
			start := time.Now()
			if err := call(); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took < want*85/100 || took > want*115/100 {
				t.Errorf("%s took %v, want about %v", what, took, want)
			}
		}
		data := objecttest.Bytes(1, 1024*kib)
		put := func() error { return s.Put(t.Context(), "a", data) }
		get := func() error { _, err := s.Get(t.Context(), "a", make([]byte, 1024*kib), 0); return err }
		timed("without limits, both", 0, func() error { return errors.Join(put(), get()) })
		gate.SetRates(object.Rates{Upload: 64 * kib})
		timed("1 MiB up at 64 KiB/s", 16*time.Second, put)
		timed("1 MiB down with uploads limited", 0, get)
		gate.SetRates(object.Rates{Download: 128 * kib})
		timed("1 MiB down at 128 KiB/s", 8*time.Second, get)
		timed("1 MiB up with downloads limited", 0, put)

		gate.SetRates(object.Rates{Upload: 16 * kib})
		go func() {
			time.Sleep(4 * time.Second) // 64 KiB later
			gate.SetRates(object.Rates{Upload: 960 * kib})
		}()
		timed("1 MiB up, faster after 4 s", 5*time.Second, put)

		gate.SetRates(object.Rates{Requests: 5})
		timed("25 requests at 5/s", 5*time.Second, func() error {
			for range 25 {
				if _, err := s.Get(t.Context(), "a", nil, 0); err != nil {
					return err
				}
			}
			return nil
		})

		gate.SetRates(object.Rates{Download: 128 * kib})
		verify := make(chan time.Duration)
		start := time.Now()
		go func() {
			s.Get(object.WithClass(t.Context(), object.Upkeep), "a", make([]byte, 1024*kib), 0)
			verify <- time.Since(start)
		}()
		timed("1 MiB down beside a verification", 9*time.Second, get)
		if took := <-verify; took < 15*time.Second {
			t.Errorf("the verification took %v, want about 16 s", took)
		}
	})
}

// Who waits for its turn at a low rate leaves when its context ends.
func TestRateCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, err := object.CreateDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		gate := object.NewGate(1)
		gate.SetRates(object.Rates{Upload: 16 << 10})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err = gate.Store(dir).Put(ctx, "a", make([]byte, 1<<20))
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
	})
}

// pacing is a Store that sends and receives through a Transport.
type pacing struct {
	object.Store
	client *http.Client
	url    string
}

func (p *pacing) Put(ctx context.Context, name string, data []byte) error {
	body := object.NewUpload(data)
	defer body.Release()
	r, err := http.NewRequestWithContext(ctx, "PUT", p.url, body)
	if err != nil {
		return err
	}
	r.ContentLength = int64(len(data))
	answer, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// What a Transport sends and receives is paced too, whichever library asks.
func TestTransportRates(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Write(make([]byte, n))
	}))
	defer server.Close()
	transport, err := object.NewTransport("", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	for _, rates := range []object.Rates{{Upload: 1 << 20}, {Download: 1 << 20}, {Requests: 2}} {
		gate := object.NewGate(1)
		gate.SetRates(rates)
		s := gate.Store(&pacing{client: &http.Client{Transport: transport}, url: server.URL})
		start := time.Now()
		for range 4 { // two of a second's share beyond what a pause has left
			if err := s.Put(t.Context(), "a", make([]byte, 150<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 400*time.Millisecond {
			t.Errorf("%+v: 600 KiB each way in 4 requests took %v", rates, took)
		}
	}
}

func TestRatesCheck(t *testing.T) {
	for _, c := range []struct {
		rates object.Rates
		good  bool
	}{
		{object.Rates{}, true}, {object.Rates{Upload: 16 << 10, Download: 1 << 40, Requests: 1}, true},
		{object.Rates{Upload: 1000}, false}, {object.Rates{Download: -1}, false}, {object.Rates{Requests: -1}, false},
	} {
		if err := c.rates.Check(); (err == nil) != c.good {
			t.Errorf("%+v: %v", c.rates, err)
		}
	}
}
