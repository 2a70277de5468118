package object

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// eachAtOnce is how many objects are deleted at once where each takes a request.
const eachAtOnce = 4

// DeleteEach deletes objects for a Store whose server has no request for many of
// them: one is called for each name, for a few at once. Those beyond the first
// have places of their own at the [Gate] that the call came through, so a server
// that is too busy gets fewer.
//
// What one says the store retains stays, and the others go. Any other error ends
// it, and its Left are the names that are still to go.
func DeleteEach(ctx context.Context, names []string, one func(ctx context.Context, name string) error) error {
	d := &deletion{names: names, one: one, gone: make(map[string]bool)}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	var helpers sync.WaitGroup
	if gate := gateOf(ctx); gate != nil {
		for range min(eachAtOnce, len(names)) - 1 {
			helpers.Go(func() { d.help(ctx, waiting, gate) })
		}
	}
	for d.next(ctx) == nil {
	}
	stop()
	helpers.Wait()
	return d.outcome(names)
}

// A deletion is what is done of a DeleteEach.
type deletion struct {
	one func(ctx context.Context, name string) error

	mu     sync.Mutex
	names  []string // that nobody began with
	gone   map[string]bool
	held   RetainedError
	failed error // the first that is no RetainedError
}

// errNoMore ends a loop over the names.
var errNoMore = errors.New("there is nothing left to delete")

// help deletes as long as there are names, each with a place at the gate. It no
// longer waits for one when waiting ends.
func (d *deletion) help(ctx, waiting context.Context, gate *Gate) {
	for {
		leave, err := gate.enter(waiting)
		if err != nil {
			return
		}
		err = d.next(ctx)
		if err == errNoMore {
			leave(nil)
			return
		}
		leave(err)
		if err != nil {
			return
		}
	}
}

// next deletes one object. Its error is the object's, or errNoMore.
func (d *deletion) next(ctx context.Context) error {
	d.mu.Lock()
	if len(d.names) == 0 || d.failed != nil {
		d.mu.Unlock()
		return errNoMore
	}
	name := d.names[0]
	d.names = d.names[1:]
	d.mu.Unlock()
	err := d.one(ctx, name)
	d.mu.Lock()
	defer d.mu.Unlock()
	var held *RetainedError
	switch {
	case err == nil:
		d.gone[name] = true
	case errors.As(err, &held):
		if len(d.held.Names) == 0 {
			d.held.Said = held.Said
		}
		d.held.Names = append(d.held.Names, name)
		return nil
	case d.failed == nil:
		d.failed = err
	}
	return err
}

// outcome is what to tell whoever wanted names deleted.
func (d *deletion) outcome(names []string) error {
	var e *Error
	switch {
	case d.failed == nil && len(d.held.Names) > 0:
		return &d.held
	case errors.As(d.failed, &e):
		said := *e
		said.Left = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return d.gone[name] })
		return &said
	}
	return d.failed
}
