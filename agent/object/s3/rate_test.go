package s3_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/e2e/testbed"
)

// A real server gets no more in a second than each limit says, from several
// calls at once, and what is not limited is not held back by it. How close to
// the limits it gets is measured by the bench, and by TestRates with a clock of
// its own.
func TestRates(t *testing.T) {
	const kib = 1 << 10
	server := testbed.S3(t)
	plain := create(t, server.URL, server.Env())
	gate := object.NewGate(8)
	s := gate.Store(plain)
	data := objecttest.Bytes(1, 512*kib)
	calls := func(n int, call func(ctx context.Context, name string) error) time.Duration {
		t.Helper()
		start := time.Now()
		failures := make(chan error, n)
		for i := range n {
			go func() { failures <- call(t.Context(), fmt.Sprintf("p/%d", i)) }()
		}
		for range n {
			if err := <-failures; err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(start)
	}
	put := func(ctx context.Context, name string) error { return s.Put(ctx, name, data) }
	get := func(ctx context.Context, name string) error {
		p := make([]byte, len(data))
		_, err := s.Get(ctx, name, p, 0)
		return err
	}
	remove := func(ctx context.Context, name string) error { return s.Delete(ctx, name, name+"-1", name+"-2") }
	for _, c := range []struct {
		what  string
		rates object.Rates
		least time.Duration
		n     int
		call  func(context.Context, string) error
	}{
		// A tenth of a second's worth may be saved up, and the last piece of
		// each is not waited for.
		{"4 MiB up at 4 MiB/s", object.Rates{Upload: 4096 * kib, Download: 16 * kib}, 750 * time.Millisecond, 8, put},
		{"4 MiB down at 4 MiB/s", object.Rates{Download: 4096 * kib, Upload: 16 * kib}, 750 * time.Millisecond, 8, get},
		{"30 requests at 40 a second", object.Rates{Requests: 40}, 500 * time.Millisecond, 30, func(ctx context.Context, _ string) error {
			_, err := s.Get(ctx, "p/0", make([]byte, 1), 0)
			return err
		}},
		{"8 deletions of three objects at 10 requests a second", object.Rates{Requests: 10}, 500 * time.Millisecond, 8, remove},
	} {
		gate.SetRates(c.rates)
		if took := calls(c.n, c.call); took < c.least {
			t.Errorf("%s took %v, want %v at least", c.what, took, c.least)
		}
	}
	if _, err := plain.Get(t.Context(), "p/0", nil, 0); err == nil {
		t.Error("what was deleted at a low rate is there")
	} else if e := new(object.Error); !errors.As(err, &e) {
		t.Error(err)
	}
}
