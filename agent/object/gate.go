package object

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"
)

// A Gate bounds what passes to one server: how many calls at once, how many
// requests and bytes a second. It belongs to the server and outlives the Stores
// that are opened there. All methods are safe for concurrent use.
//
// Who waits is let in by class, see [Class]. What makes way for others waits for
// its turn first, see [WithTurn].
//
// When the server says that it is too busy, the number of calls at once is
// halved, and nobody is let in for as long as it asks, half a minute at most. For each
// call that succeeds it grows again, by one in as many calls as there may be
// ("additive increase, multiplicative decrease").
type Gate struct {
	pace pace
	most int

	mu     sync.Mutex
	window float64 // calls at once, from 1 to most
	under  int     // calls under way
	line   line
	cut    time.Time   // when window was halved; calls that began before do not halve it again
	closed time.Time   // nobody is let in before
	timer  *time.Timer // runs while the gate is closed and somebody waits
}

// holdMost is the longest time for which one answer closes a Gate. A server that
// wants more is left alone by the calls that it has refused, which Retry repeats
// when their time has come.
const holdMost = 30 * time.Second

// urgent is how many calls of class Demand may be under way beyond the window:
// long uploads can fill it, and somebody waits.
const urgent = 2

// NewGate returns a Gate that lets at most n calls in at once, and a few of
// class Demand beside them.
func NewGate(n int) *Gate {
	if n < 1 {
		panic("object: a limit below 1 would let nothing through")
	}
	return &Gate{most: n, window: float64(n)}
}

// Limit returns s behind a Gate of its own: NewGate(n).Store(s).
func Limit(s Store, n int) Store { return NewGate(n).Store(s) }

// SetRates changes what passes in a second, for what is under way too. The
// rates must pass Check.
func (g *Gate) SetRates(r Rates) {
	g.pace.up.set(r.Upload)
	g.pace.down.set(r.Download)
	g.pace.requests.set(r.Requests)
}

// Rates returns what SetRates set.
func (g *Gate) Rates() Rates {
	return Rates{Upload: g.pace.up.current(), Download: g.pace.down.current(), Requests: g.pace.requests.current()}
}

// Places returns how many calls may be under way at once now.
func (g *Gate) Places() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int(g.window)
}

// Store returns s behind the Gate. A listing takes a place while it fetches and
// gives it back while its caller looks at what was found, so the caller may use
// the store inside its loop.
func (g *Gate) Store(s Store) Store { return &gated{s, g} }

// enter returns when the call may begin. leave is called with its outcome.
func (g *Gate) enter(ctx context.Context) (leave func(error), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	w := g.line.join(classOf(ctx), 1)
	g.admit()
	g.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.line.leave(w) { // let in meanwhile
			g.under--
			g.admit()
		}
		return nil, ctx.Err()
	}
	begun := time.Now()
	return func(err error) { g.left(begun, err) }, nil
}

// left counts a call that has ended.
func (g *Gate) left(begun time.Time, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.under--
	now := time.Now()
	var e *Error
	switch {
	case err == nil, err == io.EOF:
		g.window = min(g.window+1/g.window, float64(g.most))
	case errors.As(err, &e) && e.Busy:
		if !begun.Before(g.cut) {
			g.window, g.cut = max(1, g.window/2), now
		}
		if until := now.Add(min(e.RetryAfter, holdMost)); until.After(g.closed) {
			g.closed = until
		}
	}
	g.admit()
}

// admit lets in who may go. mu is held.
func (g *Gate) admit() {
	if wait := time.Until(g.closed); wait > 0 {
		if g.timer == nil && !g.line.empty() {
			g.timer = time.AfterFunc(wait, func() {
				g.mu.Lock()
				defer g.mu.Unlock()
				g.timer = nil
				g.admit()
			})
		}
		return
	}
	may := func(c Class) bool {
		room := int(g.window)
		if c == Demand {
			room += urgent
		}
		return g.under < room
	}
	for {
		w := g.line.next(may)
		if w == nil {
			return
		}
		g.under++
		g.line.call(w)
	}
}

type gated struct {
	s    Store
	gate *Gate
}

// through makes a call that moves n bytes at most, in its turn.
func (s *gated) through(ctx context.Context, op, name string, n int, call func(context.Context) error) error {
	end, err := beginRequest(ctx, n)
	if err != nil {
		return queueError(op, name, err)
	}
	defer end()
	return s.gate.through(WithTurn(ctx, nil), op, name, call)
}

// through makes a call when it has a place, at the Gate's pace.
func (g *Gate) through(ctx context.Context, op, name string, call func(context.Context) error) error {
	leave, err := g.enter(ctx)
	if err != nil {
		return queueError(op, name, err)
	}
	err = call(withGate(ctx, g))
	leave(err)
	return err
}

func queueError(op, name string, err error) error {
	return &Error{Op: op, Name: name, Store: "the queue of requests", Err: err}
}

func (s *gated) Put(ctx context.Context, name string, data []byte) error {
	return s.through(ctx, "put", name, len(data), func(ctx context.Context) error { return s.s.Put(ctx, name, data) })
}

func (s *gated) Get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = s.through(ctx, "get", name, len(p), func(ctx context.Context) error {
		n, err = s.s.Get(ctx, name, p, off)
		return err
	})
	return n, err
}

// Delete takes no turn: only in a folder it is work for this machine, and that
// takes one for each file.
func (s *gated) Delete(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	return s.gate.through(ctx, "delete", names[0], func(ctx context.Context) error { return s.s.Delete(ctx, names...) })
}

func (s *gated) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		next, stop := iter.Pull2(s.s.List(withGate(ctx, s.gate), prefix))
		defer stop()
		for {
			var info Info
			var more bool
			err := s.through(ctx, "list", prefix, 0, func(context.Context) (err error) {
				info, err, more = next()
				return err
			})
			if err == nil && !more || !yield(info, err) || err != nil {
				return
			}
		}
	}
}
