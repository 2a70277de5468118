package fuse

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testIndex returns an index whose lists come from list, and its log.
func testIndex(t *testing.T, list func(context.Context) ([]Image, error)) (*index, *logBuffer) {
	log := &logBuffer{}
	x := newIndex(t.Context(), newMemSource(), slog.New(slog.NewTextHandler(log, nil)))
	x.list = list
	return x, log
}

// A list is good for half a second, and many who ask at once share one.
func TestIndexSharesLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lists := 0
		x, _ := testIndex(t, func(context.Context) ([]Image, error) {
			lists++
			time.Sleep(100 * time.Millisecond)
			return []Image{{ID: id(byte(lists)), Volume: "v", Name: "a"}}, nil
		})
		ask := func(n, want int) {
			t.Helper()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					got, err := x.tree(t.Context())
					if err != nil || got.images[id(byte(want))] == nil {
						t.Errorf("%v, %v, want the images of list %d", got, err, want)
					}
				})
			}
			wg.Wait()
		}
		ask(10, 1)
		time.Sleep(fresh - time.Millisecond)
		ask(10, 1)
		time.Sleep(time.Millisecond)
		ask(10, 2)
		if lists != 2 {
			t.Errorf("%d lists, want 2", lists)
		}
	})
}

// An error is logged when it begins, when it changes and when it ends; between
// tries it is kept like a list.
func TestIndexErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := []error{errors.New("away"), errors.New("away"), errors.New("refused"), nil, nil, errors.New("away")}
		lists := 0
		x, log := testIndex(t, func(context.Context) ([]Image, error) {
			lists++
			if lists == 3 {
				panic("boom")
			}
			return nil, steps[lists-1]
		})
		for i, want := range steps {
			for range 3 {
				_, err := x.tree(t.Context())
				if i != 2 && !errors.Is(err, want) || (err == nil) != (want == nil) {
					t.Errorf("list %d: %v, want %v", i, err, want)
				}
			}
			time.Sleep(fresh)
		}
		if got := strings.Count(log.String(), "\n"); lists != len(steps) || got != 4 {
			t.Errorf("%d lists and %d lines in the log, want %d and 4:\n%s", lists, got, len(steps), log)
		}
	})
}

// One who is interrupted gets a second more, then EINTR; the list goes on for the
// others.
func TestIndexInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _ := testIndex(t, func(context.Context) ([]Image, error) {
			time.Sleep(5 * time.Second)
			return nil, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		if _, err := x.tree(ctx); err != nil {
			t.Errorf("interrupted half a second before the end: %v", err)
		}
		time.Sleep(fresh)
		began := time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := x.tree(ctx); err != errInterrupted || time.Since(began) != 2*time.Second+grace {
			t.Errorf("interrupted: %v after %v", err, time.Since(began))
		}
		if _, err := x.tree(t.Context()); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("the list that went on: %v after %v", err, time.Since(began))
		}
	})
}

// A Source that never answers gets its context ended.
func TestIndexTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _ := testIndex(t, func(ctx context.Context) ([]Image, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		began := time.Now()
		if _, err := x.tree(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != listTime {
			t.Errorf("%v after %v, want %v after %v", err, time.Since(began), context.DeadlineExceeded, listTime)
		}
	})
}
