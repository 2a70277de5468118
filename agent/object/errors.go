package object

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// An Error is what every Store returns when an operation does not succeed.
type Error struct {
	Op    string // "put", "get", "list", "delete" or "open"
	Name  string // the object; for a list the prefix; may be empty
	Store string // the store as its URL says it, without secrets
	Err   error  // why; never contains a secret

	// Temporary says that the same call may succeed later: the network, a
	// busy or broken server. RetryAfter, if not 0, is how long the server
	// asks to be left alone.
	Temporary  bool
	RetryAfter time.Duration

	// Busy says that the server asks for less: a Gate then lets less through.
	Busy bool

	// Left, if not nil, is what a Delete has not done: the other objects are gone.
	Left []string
}

func (e *Error) Error() string {
	subject := e.Op
	if e.Name != "" {
		subject += " " + e.Name
	}
	return fmt.Sprintf("%s in %s: %v", subject, e.Store, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// retryable says whether err may go away by itself, and what pause the store
// asked for.
func retryable(err error) (pause time.Duration, ok bool) {
	for _, final := range []error{fs.ErrNotExist, fs.ErrPermission, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, final) {
			return 0, false
		}
	}
	var e *Error
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.RetryAfter, e.Temporary
}

// ErrAway is wrapped by errors that say that the place of a store is not there
// now, and may be later: a folder whose file system is not mounted.
var ErrAway = errors.New("is the file system mounted?")

// ErrOccupied is wrapped by errors that say that a place cannot become a store
// because something else is in it.
var ErrOccupied = errors.New("give an empty place, or one that holds a target already")

// ErrNoContainer is wrapped by errors that say that the container or bucket of a
// store does not exist: nobody made it, or somebody removed it.
var ErrNoContainer = errors.New("check its name, or create it first")

// errFull is wrapped by errors that say that a server has no room.
var errFull = errors.New("no room is left")

// Full is errFull with what the server said.
func Full(said string) error { return fmt.Errorf("%s: %w", said, errFull) }

// IsFull reports whether a store has no room: a full disk, a quota that is used
// up.
func IsFull(err error) bool {
	return errors.Is(err, errFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// A RetainedError says that the store keeps objects that were to be deleted, as
// it has been told to for a time: object lock, a retention policy. All others of
// the call were deleted.
type RetainedError struct {
	Names []string // at least one
	Said  string   // by the store, of the first
}

func (e *RetainedError) Error() string {
	more := ""
	if len(e.Names) > 1 {
		more = fmt.Sprintf(" and %d more", len(e.Names)-1)
	}
	return fmt.Sprintf("the store retains %s%s: %s", e.Names[0], more, e.Said)
}

// Away reports whether a store did not do what was asked because it cannot be
// reached, or is not well: the same may be done when it is back. Calls that
// ended with their caller's patience are no answer either, and count. So does a
// name that nobody knows: that is what a resolver without its network says.
func Away(err error) bool {
	var (
		e   *Error
		dns *net.DNSError
	)
	return errors.Is(err, ErrAway) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &dns) || errors.As(err, &e) && e.Temporary
}

// TemporaryStatus says whether an HTTP request that was answered with this
// status may succeed if it is made again: time-outs, rate limits (429; 498 in
// Swift), conflicts with another writer at the same instant (409), a body that
// was damaged on its way (422 in Swift), and failures of the server, except
// those that say it will never do such a thing (501, 505), or that it is full
// (507): only somebody can change that.
func TemporaryStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusUnprocessableEntity,
		http.StatusTooEarly, http.StatusTooManyRequests, 498:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusInsufficientStorage:
		return false
	}
	return code >= 500
}

// BusyStatus says whether an HTTP request was answered with the wish for fewer of
// them: 429, Swift's 498, and 503, which S3 calls SlowDown.
func BusyStatus(code int) bool {
	return code == http.StatusTooManyRequests || code == 498 || code == http.StatusServiceUnavailable
}

// TemporaryNetwork says whether a request that got no answer at all, or was
// cut off, may succeed if it is made again. All of those may, but for a name
// that does not exist, a certificate that is refused, a peer that does not
// speak TLS, and an end of the caller's own wish.
func TemporaryNetwork(err error) bool {
	var (
		dns       *net.DNSError
		cert      *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.As(err, &cert), errors.As(err, &authority), errors.As(err, &host),
		errors.As(err, &invalid), errors.As(err, &record):
		return false
	}
	return true
}

// RetryAfter reads the Retry-After header: RFC 9110 section 10.2.3, a number of
// seconds or a date. 0 if there is none, or none that makes sense.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}
