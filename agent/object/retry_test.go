package object_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
)

// failing returns a Store whose every call fails with err, and the count of
// its calls.
func failing(err error) (object.Store, *int) {
	calls := new(int)
	return &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
		*calls++
		return err
	}}, calls
}

func temporary(after time.Duration) error {
	return &object.Error{Op: "put", Name: "a", Store: "test", Err: errors.New("busy"), Temporary: true, RetryAfter: after}
}

func TestRetryGivesUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		policy  object.Policy
		calls   int
		atLeast time.Duration // that it took
		atMost  time.Duration
	}{
		{"twelve tries", temporary(0), object.Policy{}, 12, 0, 6 * time.Minute},
		{"as the store asks", temporary(time.Minute), object.Policy{}, 12, 11 * time.Minute, 15 * time.Minute},
		{"time is up", temporary(4 * time.Minute), object.Policy{}, 4, 12 * time.Minute, 12 * time.Minute},
		{"pause beyond the end", temporary(time.Hour), object.Policy{}, 1, 0, 0},
		{"own policy", temporary(0), object.Policy{Tries: 3, Base: time.Second, Max: time.Second}, 3, 0, 2 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, calls := failing(c.err)
			start := time.Now()
			err := object.Retry(s, c.policy).Put(t.Context(), "a", nil)
			took := time.Since(start)
			if *calls != c.calls || took < c.atLeast || took > c.atMost {
				t.Errorf("%s: %d calls in %v; want %d in %v to %v", c.name, *calls, took, c.calls, c.atLeast, c.atMost)
			}
			var e *object.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), fmt.Sprintf("after %d tries", c.calls)) {
				t.Errorf("%s: the error does not say how often it was tried: %v", c.name, err)
			}
		})
	}
}

func TestRetryFinalErrors(t *testing.T) {
	for _, cause := range []error{fs.ErrNotExist, fs.ErrPermission, context.Canceled, context.DeadlineExceeded, errors.New("bad request")} {
		s, calls := failing(&object.Error{Op: "get", Name: "a", Store: "test", Err: cause, Temporary: !strings.Contains(cause.Error(), "bad")})
		_, err := object.Retry(s, object.Policy{}).Get(t.Context(), "a", nil, 0)
		if *calls != 1 || !errors.Is(err, cause) {
			t.Errorf("%v: %d calls, then %v; want 1 and the error itself", cause, *calls, err)
		}
	}
}

// An end of the context ends the pause, and the error says both: what the
// caller did, and what went wrong before.
func TestRetryCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := failing(temporary(time.Minute))
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		start := time.Now()
		err := object.Retry(s, object.Policy{}).Delete(ctx, "a")
		if took := time.Since(start); took != 90*time.Second {
			t.Errorf("returned %v after the start, and the context ended after 90s", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "busy") || !strings.Contains(err.Error(), "after 2 tries") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRetryNotifies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := failing(temporary(time.Second))
		var told []int
		policy := object.Policy{Tries: 3, Notify: func(failure error, try int, pause time.Duration) {
			if pause < time.Second || failure == nil {
				t.Errorf("told of %v and a pause of %v", failure, pause)
			}
			told = append(told, try)
		}}
		if err := object.Retry(s, policy).Put(t.Context(), "a", nil); err == nil {
			t.Error("no error")
		}
		if fmt.Sprint(told) != "[1 2]" {
			t.Errorf("told of tries %v, want [1 2]", told)
		}
	})
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		under, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			under += n
			most = max(most, under)
		}
		hook := &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
			count(1)
			defer count(-1)
			time.Sleep(time.Second) // the bubble's clock: the others arrive meanwhile
			return nil
		}}
		s := object.Limit(hook, 3)
		done := make(chan error)
		for i := range 10 {
			go func() { done <- s.Put(object.WithClass(t.Context(), object.Copy), fmt.Sprint(i), nil) }()
		}
		for range 10 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if most != 3 {
			t.Errorf("%d calls at once, want 3", most)
		}
	})
}

// Who waits for a place leaves when its context ends.
func TestLimitCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hook := &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
			<-release
			return nil
		}}
		s := object.Limit(hook, 1)
		first := make(chan error)
		go func() { first <- s.Put(t.Context(), "a", nil) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(object.WithClass(t.Context(), object.Copy), time.Second)
		defer cancel()
		if err := s.Put(ctx, "b", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(release)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

func TestTemporary(t *testing.T) {
	for code, want := range map[int]bool{
		400: false, 401: false, 403: false, 404: false, 408: true, 409: true, 412: false, 413: false, 416: false,
		422: true, 429: true, 498: true, 500: true, 501: false, 502: true, 503: true, 504: true, 505: false, 507: false,
	} {
		if got := object.TemporaryStatus(code); got != want {
			t.Errorf("status %d: temporary is %v, want %v", code, got, want)
		}
	}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{io.ErrUnexpectedEOF, true},
		{&url.Error{Op: "Get", URL: "http://h", Err: io.EOF}, true},
		{&net.DNSError{IsNotFound: true}, false},
		{&net.DNSError{IsTimeout: true}, true},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, true},
		{fmt.Errorf("x: %w", context.Canceled), false},
	} {
		if got := object.TemporaryNetwork(c.err); got != c.want {
			t.Errorf("%v: temporary is %v, want %v", c.err, got, c.want)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := object.RetryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("Retry-After %q: got %v, want %v", text, got, want)
		}
	}
}

// A connection that is silent in both directions is given up after a minute;
// one that only sends is not, however long it takes.
func TestTransportStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer server.Close()
		defer client.Close()
		c := object.StallConn(client)
		start := time.Now()
		failed := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			failed <- err
		}()
		for range 10 {
			time.Sleep(50 * time.Second)
			go server.Read(make([]byte, 1))
			if _, err := c.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		var timeout net.Error
		if err := <-failed; !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v, want a time-out", err)
		}
		if took := time.Since(start); took != 560*time.Second {
			t.Errorf("given up after %v, want a minute after the last byte at 500s", took)
		}
	})
}
