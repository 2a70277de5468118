package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"varve/catalog"
)

// Reason classes an Error by what the caller can do about it. agent/api maps
// it to an HTTP status, the CLI to an exit code.
type Reason string

const (
	NotFound    Reason = "not found"   // nothing has that name or id
	Ambiguous   Reason = "ambiguous"   // several things have that name; the message lists their ids
	Invalid     Reason = "invalid"     // the request makes no sense as it stands
	Conflict    Reason = "conflict"    // it cannot be done in the state that things are in now
	InUse       Reason = "in use"      // somebody has it open
	TooLarge    Reason = "too large"   // it would pass a limit
	Denied      Reason = "denied"      // credentials, passphrase or rights were refused
	Unavailable Reason = "unavailable" // a target or a disk did not answer
	Corrupt     Reason = "corrupt"     // stored data is not what was written
	Stopped     Reason = "stopped"     // canceled, or the daemon was stopped
	Internal    Reason = "internal"    // anything else
)

// An Error is what the agent's methods return for whoever asked: what was
// wrong and what to do about it.
type Error struct {
	Reason  Reason
	Message string // whole sentences or a phrase, for a person; holds no secret
	err     error  // the cause; nil if there is none
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// Is makes an Error of reason NotFound an fs.ErrNotExist, and one of reason
// Denied an fs.ErrPermission.
func (e *Error) Is(target error) bool {
	return e.Reason == NotFound && target == fs.ErrNotExist ||
		e.Reason == Denied && target == fs.ErrPermission
}

// ReasonOf returns the reason of the Error in err's chain. Errors that are not
// the agent's are classed by what they wrap; what remains is Internal.
func ReasonOf(err error) Reason {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Reason
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission):
		return Denied
	case errors.Is(err, context.Canceled):
		return Stopped
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, catalog.ErrFull), errors.Is(err, catalog.ErrReadOnly), errors.Is(err, unix.ENOSPC):
		return Unavailable
	}
	return Internal
}

// fail makes an Error. Its format is fmt.Errorf's, %w included.
func fail(r Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Reason: r, Message: err.Error(), err: errors.Unwrap(err)}
}

// firstError returns the first of errors that were joined: one at a time is
// what a person puts right.
func firstError(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()[0]
	}
	return err
}
