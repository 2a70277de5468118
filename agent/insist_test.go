package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/catalog"
)

var (
	errAway = &object.Error{Op: "put", Store: "swift://t1", Err: io.ErrUnexpectedEOF, Temporary: true}
	errFull = &object.Error{Op: "put", Store: "swift://t1", Err: errors.New("no space")}
)

func insisting() (*Agent, *operation) {
	return &Agent{insistence: usualInsistence, log: slog.New(slog.DiscardHandler)}, &operation{changed: make(chan struct{})}
}

// A day without a network is waited for, with pauses that grow, and the
// operation says what it waits for.
func TestInsistWaitsForATarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, op := insisting()
		tries, begun := 0, time.Now()
		go func() {
			time.Sleep(12 * time.Hour)
			if o, _ := op.state(); !strings.Contains(o.Waits, "target t1 is away") || !strings.Contains(o.Waits, "unexpected EOF") {
				t.Errorf("it says that it waits for %q", o.Waits)
			}
		}()
		err := a.insist(t.Context(), op, catalog.Target{Name: "t1"}, func() error {
			if tries++; time.Since(begun) < 24*time.Hour {
				return fmt.Errorf("write pack: %w", errAway)
			}
			return nil
		})
		if err != nil || tries > 110 || tries < 90 {
			t.Errorf("%v after %d tries in a day", err, tries)
		}
		if late := time.Since(begun) - 24*time.Hour; late > 15*time.Minute {
			t.Errorf("it noticed %v late that the target is back", late)
		}
		if o, _ := op.state(); o.Waits != "" {
			t.Errorf("in the end it waits for %q", o.Waits)
		}
	})
}

func TestInsistGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, op := insisting()
		begun := time.Now()
		err := a.insist(t.Context(), op, catalog.Target{}, func() error {
			if time.Since(begun) < 48*time.Hour {
				op.progress(int64(time.Since(begun)), 0) // it gets on
			}
			return errAway
		})
		if took := time.Since(begun); !errors.Is(err, io.ErrUnexpectedEOF) || ReasonOf(err) != Unavailable || took < 100*time.Hour || took > 120*time.Hour {
			t.Errorf("%v after %v, want to give up three days after the last progress", err, took)
		}
		for _, final := range []error{errFull, errFault} {
			if err := a.insist(t.Context(), op, catalog.Target{}, func() error { return final }); err != final {
				t.Errorf("%v, want %v at once", err, final)
			}
		}
	})
}

func TestInsistEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, op := insisting()
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Hour+time.Second, func() { cancel(errCanceled) })
		begun := time.Now()
		err := a.insist(ctx, op, catalog.Target{}, func() error { return errAway })
		if took := time.Since(begun); err != errCanceled || took != time.Hour+time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}
