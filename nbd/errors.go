package nbd

import (
	"errors"
	"io/fs"
	"syscall"

	"varve/layers"
)

var (
	errShutdown = errors.New("the server is shutting down")
	errPanic    = errors.New("internal error, see the server's log")
)

// errnoOf translates a device's error to the number that goes into a reply.
// It is the only place that does; what it does not know is an I/O error.
func errnoOf(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return errnoPerm
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return errnoNoSpace
	case errors.Is(err, fs.ErrInvalid), errors.Is(err, syscall.EINVAL):
		return errnoInval
	case errors.Is(err, errShutdown), errors.Is(err, layers.ErrClosed), errors.Is(err, fs.ErrClosed):
		return errnoShutdown
	case errors.Is(err, syscall.ENOMEM):
		return errnoNoMem
	case errors.Is(err, errors.ErrUnsupported):
		return errnoNotSup
	}
	return errnoIO
}

// optionError translates an error of Server.Open or Server.List to the type of
// an option's error reply.
func optionError(err error) uint32 {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return repErrUnknown
	case errors.Is(err, ErrTLSRequired):
		return repErrTLSReqd
	case errors.Is(err, errShutdown), errors.Is(err, layers.ErrClosed), errors.Is(err, fs.ErrClosed):
		return repErrShutdown
	}
	return repErrPolicy
}

// A refusal is the answer to a request that the checks turn down: it never
// reaches the device.
type refusal struct {
	errno uint32
	text  string // for the client's user
}
