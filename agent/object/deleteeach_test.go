package object_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
)

// single is a Store whose server deletes one object at a time, in a second of
// the bubble's clock each.
type single struct {
	object.Store
	fail func(name string) error

	mu          sync.Mutex
	under, most int
	asked       []string
}

func (s *single) Delete(ctx context.Context, names ...string) error {
	return object.DeleteEach(ctx, names, func(ctx context.Context, name string) error {
		s.mu.Lock()
		s.asked = append(s.asked, name)
		s.under++
		s.most = max(s.most, s.under)
		err := s.fail(name)
		s.mu.Unlock()
		time.Sleep(time.Second)
		s.mu.Lock()
		s.under--
		s.mu.Unlock()
		return err
	})
}

func numbered(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%03d", i))
	}
	return names
}

func busy(name string) error {
	return &object.Error{Op: "delete", Name: name, Store: "test", Err: errors.New("503"), Temporary: true, Busy: true}
}

// Objects are deleted a few at once, as far as the gate has places.
func TestDeleteEachAtOnce(t *testing.T) {
	for _, c := range []struct{ places, want int }{{16, 4}, {4, 4}, {2, 2}, {1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			s := &single{fail: func(string) error { return nil }}
			start := time.Now()
			ctx := object.WithClass(t.Context(), object.Upkeep)
			if err := object.Limit(s, c.places).Delete(ctx, numbered(100)...); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); s.most != c.want || took != time.Duration(100/c.want)*time.Second {
				t.Errorf("%d places: %d at once, %v in all; want %d", c.places, s.most, took, c.want)
			}
			slices.Sort(s.asked)
			if !slices.Equal(s.asked, numbered(100)) {
				t.Errorf("asked for %q", s.asked)
			}
		})
	}
}

// A server that refuses one in ten is asked again for what is left alone, by
// fewer at once, and gets rid of more than one call has tries for.
func TestDeleteEachBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := &single{fail: func(name string) error {
			if asked++; asked%10 == 0 {
				return busy(name)
			}
			return nil
		}}
		gate := object.NewGate(16)
		if err := object.Retry(gate.Store(s), object.Policy{}).Delete(t.Context(), numbered(300)...); err != nil {
			t.Error(err)
		}
		if asked != 333 || gate.Places() == 16 {
			t.Errorf("%d requests for 300 objects, want 333; %d places", asked, gate.Places())
		}
	})
}

// What is retained stays, and is told, also behind an error that ended the
// first try; what is refused for good ends it, and tells what is left.
func TestDeleteEachRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		again := false
		s := &single{fail: func(name string) error {
			switch {
			case name == "003" || name == "007":
				return &object.RetainedError{Names: []string{name}, Said: "for a year"}
			case name == "008" && !again:
				again = true
				return busy(name)
			}
			return nil
		}}
		err := object.Retry(object.Limit(s, 4), object.Policy{}).Delete(t.Context(), numbered(20)...)
		var held *object.RetainedError
		if !errors.As(err, &held) {
			t.Fatalf("got %v", err)
		}
		slices.Sort(held.Names)
		if !slices.Equal(held.Names, []string{"003", "007"}) || held.Said != "for a year" {
			t.Errorf("retained: %+v", held)
		}

		s.fail = func(name string) error {
			if name >= "004" {
				return &object.Error{Op: "delete", Name: name, Store: "test", Err: errors.New("403")}
			}
			return nil
		}
		err = object.Limit(s, 1).Delete(object.WithClass(t.Context(), object.Upkeep), numbered(7)...)
		var e *object.Error
		if !errors.As(err, &e) || e.Name != "004" || !slices.Equal(e.Left, []string{"004", "005", "006"}) {
			t.Errorf("got %+v", err)
		}
	})
}

// Who no longer wants it is not kept.
func TestDeleteEachCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &single{}
		s.fail = func(string) error {
			if len(s.asked) == 9 {
				cancel()
			}
			return ctx.Err()
		}
		if err := object.Limit(s, 4).Delete(ctx, numbered(100)...); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if len(s.asked) > 12 {
			t.Errorf("%d requests, and it was canceled at the ninth", len(s.asked))
		}
	})
}
