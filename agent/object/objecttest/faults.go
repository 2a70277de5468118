package objecttest

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"varve/agent/object"
)

// A Hook is a Store around a Store that asks before each call and tells after.
// Either func may be nil, and returns the error that the caller shall see
// instead. The operations are "put", "get", "list" and "delete", with the first
// name or the prefix.
type Hook struct {
	object.Store
	Before func(op, name string) error // an error: the call does not happen
	After  func(op, name string) error // an error: the call happened, its answer is lost
}

func (h *Hook) around(op, name string, call func() error) error {
	if h.Before != nil {
		if err := h.Before(op, name); err != nil {
			return err
		}
	}
	if err := call(); err != nil && err != io.EOF {
		return err
	} else if h.After == nil {
		return err
	} else if lost := h.After(op, name); lost != nil {
		return lost
	} else {
		return err
	}
}

func (h *Hook) Put(ctx context.Context, name string, data []byte) error {
	return h.around("put", name, func() error { return h.Store.Put(ctx, name, data) })
}

func (h *Hook) Get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = h.around("get", name, func() (err error) {
		n, err = h.Store.Get(ctx, name, p, off)
		return err
	})
	return n, err
}

func (h *Hook) Delete(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return h.Store.Delete(ctx)
	}
	return h.around("delete", names[0], func() error { return h.Store.Delete(ctx, names...) })
}

// listPage is how many objects a Hook yields between two questions, as if it
// fetched them page by page.
const listPage = 500

// List asks before each page, the first one also where there is nothing.
func (h *Hook) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	before := func() error {
		if h.Before == nil {
			return nil
		}
		return h.Before("list", prefix)
	}
	return func(yield func(object.Info, error) bool) {
		if err := before(); err != nil {
			yield(object.Info{}, err)
			return
		}
		count := 0
		for info, err := range h.Store.List(ctx, prefix) {
			if err == nil && count > 0 && count%listPage == 0 {
				err = before()
			}
			count++
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// ErrInjected is the cause of the errors that Flaky makes.
var ErrInjected = errors.New("injected fault")

// Flaky returns s with temporary errors in one of rate calls, as seed decides:
// before the call, or after it, as if the answer were lost.
func Flaky(s object.Store, seed uint64, rate int) object.Store {
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(seed, 0))
	fail := func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if dice.IntN(rate) != 0 {
			return nil
		}
		e := &object.Error{Op: op, Name: name, Store: "flaky", Err: ErrInjected, Temporary: true}
		if dice.IntN(4) == 0 {
			e.RetryAfter = time.Millisecond
		}
		return e
	}
	return &Hook{Store: s, Before: fail, After: fail}
}
