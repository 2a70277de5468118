package object_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
)

// A stalling store answers reads in ten milliseconds, but some not before their
// context ends.
type stalling struct {
	object.Store
	mu     sync.Mutex
	stalls func(read int) bool // counted from 0
	reads  int
}

func (s *stalling) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	s.mu.Lock()
	read := s.reads
	s.reads++
	s.mu.Unlock()
	if s.stalls(read) {
		<-ctx.Done()
		clear(p) // until it returns it may write
		return 0, context.Cause(ctx)
	}
	time.Sleep(10 * time.Millisecond)
	return s.Store.Get(ctx, name, p, off)
}

func (s *stalling) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// hedge returns a store behind Hedge with an object "a" and reads it once.
func hedge(t *testing.T, stalls func(read int) bool) (s *stalling, read func(context.Context) error) {
	t.Helper()
	s = &stalling{Store: object.NewMem(), stalls: stalls}
	h := object.Hedge(s)
	if err := h.Put(t.Context(), "a", []byte("what is there")); err != nil {
		t.Fatal(err)
	}
	return s, func(ctx context.Context) error {
		p := make([]byte, 20)
		n, err := h.Get(ctx, "a", p, 5)
		if err == io.EOF && !bytes.Equal(p[:n], []byte("is there")) {
			t.Errorf("read %q", p[:n])
		}
		return err
	}
}

// A read that somebody waits for does not hang behind a connection that stands
// still.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, read := hedge(t, func(read int) bool { return read == 0 || read == 31 })
		for i, most := range []time.Duration{0: 2010 * time.Millisecond, 29: 10 * time.Millisecond, 30: 60 * time.Millisecond} {
			begun := time.Now()
			if err := read(t.Context()); err != io.EOF {
				t.Fatalf("read %d: %v", i, err)
			}
			if took := time.Since(begun); most > 0 && took != most {
				t.Errorf("read %d took %v, want %v", i, took, most)
			}
		}
		if n := s.count(); n != 33 {
			t.Errorf("%d requests for 31 reads of which 2 stood still", n)
		}
	})
}

// Where all is slow, few requests are made twice, and what nobody waits for is
// made once.
func TestHedgeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, read := hedge(t, func(int) bool { return true })
		const reads = 200
		for range reads {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			cancel()
		}
		if more := s.count() - reads; more < 10 || more > 14 {
			t.Errorf("%d second requests for %d reads that stood still, want a twentieth and 4", more, reads)
		}
		before := s.count()
		ctx, cancel := context.WithTimeout(object.WithClass(t.Context(), object.Copy), time.Minute)
		defer cancel()
		if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) || s.count() != before+1 {
			t.Errorf("a restore's read: %v, %d requests", err, s.count()-before)
		}
	})
}

// What fails at once is not tried here, and who waits for both can be canceled.
func TestHedgeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, read := hedge(t, func(int) bool { return true })
		cause := errors.New("not any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(3*time.Second, func() { cancel(cause) })
		if err := read(ctx); !errors.Is(err, cause) || s.count() != 2 {
			t.Errorf("canceled: %v after %d requests", err, s.count())
		}
		h := object.Hedge(object.NewMem())
		if _, err := h.Get(t.Context(), "b", nil, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing: %v", err)
		}
	})
}
