package agent

import (
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"sync"
	"time"

	"varve/agent/object"
)

// kind says whether a call is one of those that are counted.
type kind func(op, name string) bool

// A traffic is the calls that a daemon makes to its target.
type traffic struct {
	mu       sync.Mutex
	is       kind
	left     int64 // calls of the kind that may pass
	active   int   // that have passed and are not answered
	held     int   // that wait
	reached  chan struct{}
	released chan struct{}
	calls    int64 // answered
	bytes    int64
}

// pass lets n calls of a kind through and begins to count. What comes then waits
// for release; reached is closed when something waits and all that passed is
// answered.
func (f *traffic) pass(is kind, n int64) (reached <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.is, f.left, f.calls, f.bytes = is, n, 0, 0
	f.reached, f.released = make(chan struct{}), make(chan struct{})
	return f.reached
}

// release ends the waiting. Nothing is counted from then on.
func (f *traffic) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.is = math.MaxInt64, nil
	close(f.released)
}

func (f *traffic) sum() (bytes, calls int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes, f.calls
}

// enter waits for the turn of a call, and returns what to tell when it is
// answered.
func (f *traffic) enter(ctx context.Context, op, name string) (answered func(bytes int, err error), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.is == nil || !f.is(op, name) {
		return func(int, error) {}, nil
	}
	if f.left == 0 {
		released := f.released
		f.held++
		f.look()
		f.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
		}
		f.mu.Lock()
		f.held--
		return func(int, error) {}, ctx.Err()
	}
	f.left--
	f.active++
	return func(bytes int, err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.active--
		if err == nil || err == io.EOF {
			f.calls++
			f.bytes += int64(bytes)
		}
		f.look()
	}, nil
}

// look closes reached, where it is. The caller holds mu.
func (f *traffic) look() {
	if f.held > 0 && f.active == 0 && f.left == 0 && f.reached != nil {
		close(f.reached)
		f.reached = nil
	}
}

// A silence is a network that lets nothing through. Who uses it gives up after
// instants instead of a minute.
type silence struct {
	mu    sync.Mutex
	begun chan struct{} // closed while it lasts
}

func newSilence() *silence { return &silence{begun: make(chan struct{})} }

func (s *silence) now() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

func (s *silence) begin() { close(s.now()) }

func (s *silence) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = make(chan struct{})
}

var errSilent = errors.New("no answer")

// bounded makes a call that ends with errSilent in a silence.
func (s *silence) bounded(ctx context.Context, op, name string, call func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.now():
			rest(ctx, 20*time.Millisecond)
			cancel(errSilent)
		case <-ctx.Done():
		}
	}()
	err := call(ctx)
	if err != nil && context.Cause(ctx) == errSilent {
		return &object.Error{Op: op, Name: name, Store: "s3://outage", Err: errSilent, Temporary: true}
	}
	return err
}

// A farStore counts what is asked of a store, and gives up in a silence.
type farStore struct {
	object.Store
	traffic *traffic
	silence *silence
}

func (s *farStore) call(ctx context.Context, op, name string, call func(context.Context) (bytes int, err error)) error {
	answered, err := s.traffic.enter(ctx, op, name)
	if err != nil {
		return err
	}
	return s.silence.bounded(ctx, op, name, func(ctx context.Context) error {
		n, err := call(ctx)
		answered(n, err)
		return err
	})
}

func (s *farStore) Put(ctx context.Context, name string, data []byte) error {
	return s.call(ctx, "put", name, func(ctx context.Context) (int, error) { return len(data), s.Store.Put(ctx, name, data) })
}

func (s *farStore) Get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = s.call(ctx, "get", name, func(ctx context.Context) (int, error) {
		n, err = s.Store.Get(ctx, name, p, off)
		return n, err
	})
	return n, err
}

func (s *farStore) Delete(ctx context.Context, names ...string) error {
	return s.call(ctx, "delete", names[0], func(ctx context.Context) (int, error) { return 0, s.Store.Delete(ctx, names...) })
}

func (s *farStore) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		var found []object.Info
		err := s.call(ctx, "list", prefix, func(ctx context.Context) (int, error) {
			for info, err := range s.Store.List(ctx, prefix) {
				if err != nil {
					return 0, err
				}
				found = append(found, info)
			}
			return 0, nil
		})
		for _, info := range found {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(object.Info{}, err)
		}
	}
}
