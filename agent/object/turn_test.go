package object_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
)

// turns counts pieces of work: those that began, and those under way.
type turns struct {
	mu           sync.Mutex
	began, under int
}

func (t *turns) turn(context.Context) (func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.began++
	t.under++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.under--
	}, nil
}

func (t *turns) want(test *testing.T, what string, began, under int) {
	test.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.began != began || t.under != under {
		test.Errorf("%s: %d turns and %d under way, want %d and %d", what, t.began, t.under, began, under)
	}
}

// Each request is a piece of work, a file that goes in a folder too, and what a
// piece asks for belongs to it.
func TestTurns(t *testing.T) {
	folder, err := object.CreateDir(t.TempDir() + "/target")
	if err != nil {
		t.Fatal(err)
	}
	s := object.Limit(folder, 4)
	var seen turns
	ctx := object.WithTurn(t.Context(), seen.turn)
	if err := errors.Join(s.Put(ctx, "a", []byte("a")), s.Put(ctx, "b", []byte("b"))); err != nil {
		t.Fatal(err)
	}
	seen.want(t, "two puts", 2, 0)
	if _, err := s.Get(ctx, "a", make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	seen.want(t, "and a get", 3, 0)
	err = object.InTurn(ctx, func(ctx context.Context) error {
		seen.want(t, "in a piece", 4, 1)
		_, err := s.Get(ctx, "a", make([]byte, 1), 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	seen.want(t, "after a piece with a request in it", 4, 0)
	if err := s.Delete(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	seen.want(t, "after two files are gone", 6, 0)
	for _, err := range s.List(ctx, "") {
		t.Error("something is left", err)
	}
	if seen.began == 6 {
		t.Error("a listing took no turn")
	}
	seen = turns{}
	if err := s.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	seen.want(t, "without turns", 0, 0)
}

// A store that is far away keeps nobody from his turn.
func TestTurnOfASlowRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen turns
		ctx := object.WithTurn(t.Context(), seen.turn)
		s := object.Limit(slow(func(string, string) {}), 4) // a second for each call
		done := make(chan error)
		go func() { done <- s.Put(ctx, "a", make([]byte, 8<<20)) }()
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		seen.want(t, "8 MiB are under way for a quarter of a second", 1, 1)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		seen.want(t, "and a while longer", 1, 0)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		seen.want(t, "at the end", 1, 0)
	})
}

// Who waits for his turn can be canceled.
func TestTurnIsCanceled(t *testing.T) {
	cause := errors.New("not any more")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	ctx = object.WithTurn(ctx, func(ctx context.Context) (func(), error) { return nil, context.Cause(ctx) })
	s := object.Limit(object.NewMem(), 1)
	if err := s.Put(ctx, "a", nil); !errors.Is(err, cause) {
		t.Errorf("put: %v", err)
	}
	if err := object.InTurn(ctx, func(context.Context) error { return nil }); !errors.Is(err, cause) {
		t.Errorf("in turn: %v", err)
	}
}
