package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"syscall"
	"time"
)

// grace is how long an interrupted request still waits for its answer.
const grace = time.Second

var (
	errInterrupted = errors.New("interrupted")
	errNoData      = errors.New("no data from there on") // of SEEK_DATA and SEEK_HOLE
)

// await receives from c. When ctx has ended and grace has passed as well, it
// gives up with errSlow if that is why ctx has ended, else with errInterrupted.
func await[T any](ctx context.Context, c <-chan T) (T, error) {
	select {
	case v := <-c:
		return v, nil
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case v := <-c:
		return v, nil
	case <-timer.C:
		var none T
		if context.Cause(ctx) == errSlow {
			return none, errSlow
		}
		return none, errInterrupted
	}
}

// A panicError is what a Source or Handle panicked with.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// guard runs op and makes a panic an error.
func guard(op func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, debug.Stack()}
		}
	}()
	return op()
}

// logAttrs are the attributes of a log line for err.
func logAttrs(err error) []any {
	attrs := []any{slog.Any("err", err)}
	if p := (*panicError)(nil); errors.As(err, &p) {
		attrs = append(attrs, slog.String("stack", string(p.stack)))
	}
	return attrs
}

// errno translates an error for the kernel. What it does not know is EIO.
func errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		return syscall.EINTR
	case errors.Is(err, errNoData):
		return syscall.ENXIO
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return syscall.EACCES
	}
	return syscall.EIO
}
