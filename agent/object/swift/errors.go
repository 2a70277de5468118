package swift

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/ncw/swift/v2"

	"varve/agent/object"
)

// A note keeps what the library drops of an answer.
type note struct {
	retryAfter time.Duration
}

type noteKey struct{}

// answers is a transport that writes to the note in the request's context.
type answers struct {
	*object.Transport
}

func (a *answers) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := a.Transport.RoundTrip(request)
	if n, ok := request.Context().Value(noteKey{}).(*note); ok && err == nil {
		n.retryAfter = object.RetryAfter(response.Header, time.Now())
	}
	return response, err
}

// status returns the HTTP status in an error of the library, or 0.
func status(err error) int {
	var e *swift.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}

// fail makes an object.Error of an error of the library. The store's own words
// for the common statuses stand in place of the server's, which are often a
// page of HTML.
func (s *store) fail(ctx context.Context, op, name string, err error) error {
	out := &object.Error{Op: op, Name: name, Store: s.where, Err: err}
	var (
		e     *swift.Error
		login *loginError
	)
	switch {
	case errors.Is(err, fs.ErrPermission):
	case errors.As(err, &e) && ctx.Err() == nil:
		out.Err = explain(op, e)
		out.Temporary = object.TemporaryStatus(e.StatusCode)
		out.Busy = object.BusyStatus(e.StatusCode)
		if n, ok := ctx.Value(noteKey{}).(*note); ok {
			out.RetryAfter = n.retryAfter
		}
	default:
		if cause := object.NetworkCause(ctx, err); cause != nil {
			out.Err = cause
			out.Temporary = object.TemporaryNetwork(cause)
		}
	}
	if errors.As(err, &login) && out.Err != err {
		out.Err = &loginError{login.address, out.Err}
	}
	return out
}

func explain(op string, e *swift.Error) error {
	switch {
	case e.StatusCode == http.StatusUnauthorized:
		return &refusal{"the server refuses the token that it gave out"}
	case e.StatusCode == http.StatusForbidden:
		return &refusal{"the server forbids it; has this user a role in the project that may write?"}
	case e.StatusCode == http.StatusNotFound && op == "get":
		return fs.ErrNotExist
	case e.StatusCode == http.StatusNotFound:
		return errContainer
	case e.StatusCode == http.StatusRequestEntityTooLarge:
		return object.Full("413: a quota is used up, or the object is larger than the server takes")
	case e.StatusCode == http.StatusUnprocessableEntity:
		return errors.New("422: the data arrived damaged, and the server refused it")
	case e.StatusCode == http.StatusInsufficientStorage:
		return object.Full("507: the server's disks are full")
	case e.StatusCode >= 300:
		text := http.StatusText(e.StatusCode)
		if e.StatusCode == 498 {
			text = "rate limit" // Swift's own
		}
		return fmt.Errorf("the server answers %d %s", e.StatusCode, text)
	}
	return e
}

var errContainer = fmt.Errorf("the container does not exist (any more): %w", object.ErrNoContainer)
