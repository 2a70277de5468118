package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"
)

// A Policy says how long to go on. The zero value is the one to use.
type Policy struct {
	Tries int           // calls at most, the first included; 0 is 12
	Total time.Duration // no new try after this long; 0 is 15 minutes
	Base  time.Duration // the longest first pause, doubled each time; 0 is 100 ms
	Max   time.Duration // the longest pause; 0 is 30 s

	// Notify, if not nil, is told of each failure that will be tried again,
	// before the pause. It must return soon and be safe for concurrent use.
	Notify func(failure error, try int, pause time.Duration)
}

// Retry returns s with calls repeated that failed for a reason that may pass.
// Between two tries it pauses for a random part ("full jitter") of a time that
// doubles, and no less than the store asked for. A missing object, refused
// rights and the end of the context are final at once. When it gives up, the
// error says after how many tries, and wraps the last one's.
//
// A listing that fails goes on behind the last name it yielded, a deletion with
// what is left.
func Retry(s Store, p Policy) Store {
	if p.Tries == 0 {
		p.Tries = 12
	}
	if p.Total == 0 {
		p.Total = 15 * time.Minute
	}
	if p.Base == 0 {
		p.Base = 100 * time.Millisecond
	}
	if p.Max == 0 {
		p.Max = 30 * time.Second
	}
	return &retried{s: s, policy: p}
}

type retried struct {
	s      Store
	policy Policy
}

func (r *retried) Put(ctx context.Context, name string, data []byte) error {
	return r.do(ctx, func() error { return r.s.Put(ctx, name, data) })
}

func (r *retried) Get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	err = r.do(ctx, func() (err error) {
		n, err = r.s.Get(ctx, name, p, off)
		return err
	})
	return n, err
}

func (r *retried) Delete(ctx context.Context, names ...string) error {
	a := r.newAttempts()
	for {
		err := r.s.Delete(ctx, names...)
		if err == nil {
			return nil
		}
		var e *Error
		if errors.As(err, &e) && e.Left != nil && len(e.Left) < len(names) {
			names, a = e.Left, r.newAttempts() // Progress, as of a long listing.
		}
		if err := a.wait(ctx, err); err != nil {
			return err
		}
	}
}

func (r *retried) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var last string
		a := r.newAttempts()
		for {
			var failure error
			for info, err := range r.s.List(ctx, prefix) {
				if err != nil {
					failure = err
					break
				}
				if info.Name <= last {
					continue
				}
				// Progress: a long listing may meet more faults than one call.
				last, a = info.Name, r.newAttempts()
				if !yield(info, nil) {
					return
				}
			}
			if failure == nil {
				return
			}
			if err := a.wait(ctx, failure); err != nil {
				yield(Info{}, err)
				return
			}
		}
	}
}

func (r *retried) do(ctx context.Context, call func() error) error {
	a := r.newAttempts()
	for {
		err := call()
		if err == nil || err == io.EOF {
			return err
		}
		if err := a.wait(ctx, err); err != nil {
			return err
		}
	}
}

// attempts counts the tries of one call.
type attempts struct {
	policy *Policy
	start  time.Time
	made   int
	pause  time.Duration // the longest next pause
}

func (r *retried) newAttempts() *attempts {
	return &attempts{policy: &r.policy, start: time.Now(), pause: r.policy.Base}
}

// wait returns nil when it is time for the next try, or else the error to give
// to the caller.
func (a *attempts) wait(ctx context.Context, failure error) error {
	a.made++
	asked, ok := retryable(failure)
	if !ok || ctx.Err() != nil {
		return a.final(failure, ctx.Err())
	}
	pause := max(asked, rand.N(a.pause)+1)
	a.pause = min(2*a.pause, a.policy.Max)
	if a.made >= a.policy.Tries || time.Since(a.start)+pause > a.policy.Total {
		return fmt.Errorf("gave up after %d tries in %v: %w", a.made, time.Since(a.start).Round(time.Millisecond), failure)
	}
	if a.policy.Notify != nil {
		a.policy.Notify(failure, a.made, pause)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return a.final(failure, ctx.Err())
	}
}

// final keeps the first failure as it is, and says of a later one how many
// tries there were. An ended context is what the caller looks for, so it is
// wrapped too.
func (a *attempts) final(failure, ended error) error {
	switch {
	case ended != nil && !errors.Is(failure, ended):
		return fmt.Errorf("%w after %d tries: %w", ended, a.made, failure)
	case a.made == 1:
		return failure
	}
	return fmt.Errorf("after %d tries: %w", a.made, failure)
}
