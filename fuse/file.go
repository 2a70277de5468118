package fuse

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"varve/layers"
)

const (
	// maxRequest is the size of the largest read request, in bytes. Linux caps
	// it there unless fs.fuse.max_pages_limit is raised.
	maxRequest = 1 << 20

	// maxFetches is how many calls of handles run at once in a mount. A read
	// holds a buffer of maxRequest.
	maxFetches = 32

	// readTime is how long a call of a handle may keep its reader: a store that
	// says nothing is tried again for longer than a file system above can wait.
	readTime = 2 * time.Minute
)

// errSlow ends the wait for a handle.
var errSlow = fmt.Errorf("no answer for %v", readTime)

// A file is an open disk.raw.
type file struct {
	*filesystem
	handle *handle
}

var (
	_ gofs.FileReader   = (*file)(nil)
	_ gofs.FileLseeker  = (*file)(nil)
	_ gofs.FileReleaser = (*file)(nil)
)

// Read reads len(dest) bytes at off, fewer only at the end of the image. It
// leaves dest alone: see hazard 2 of the package.
func (f *file) Read(ctx context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	n := min(int64(len(dest)), f.handle.image.Size-off)
	if off < 0 || n <= 0 {
		return gofuse.ReadResultData(nil), 0
	}
	buf := newBuffer(int(n))
	err := f.call(ctx, func() error {
		return readFull(f.handle, buf.data, off)
	})
	if err != nil {
		// The buffer is left to the collector: the read may still fill it.
		return nil, errno(err)
	}
	return buf, 0
}

// Lseek finds the first data or hole at off or after it: lseek(2), SEEK_DATA
// and SEEK_HOLE. The kernel keeps the other ways of seeking to itself.
func (f *file) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	size := f.handle.image.Size
	if off >= uint64(size) {
		return 0, syscall.ENXIO
	}
	seek := seekData
	switch whence {
	case unix.SEEK_DATA:
	case unix.SEEK_HOLE:
		seek = seekHole
	default:
		return 0, syscall.EINVAL
	}
	var found int64
	err := f.call(ctx, func() (err error) {
		found, err = seek(f.handle, int64(off), size)
		return err
	})
	if err != nil {
		return 0, errno(err)
	}
	return uint64(found), 0
}

// Release gives the image back.
func (f *file) Release(context.Context) syscall.Errno {
	f.handles.release(f.handle)
	return 0
}

// call runs op, which calls the file's handle, as one of maxFetches. When ctx or
// readTime ends it may return before op does.
func (f *file) call(ctx context.Context, op func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readTime, errSlow)
	defer cancel()
	err := f.callWithin(ctx, op)
	if err == errSlow {
		f.handles.complain(f.handle, err)
	}
	return err
}

func (f *file) callWithin(ctx context.Context, op func() error) error {
	slot, err := await(ctx, f.slots)
	if err != nil {
		return err
	}
	if !f.handles.begin(f.handle) {
		f.slots <- slot
		return io.ErrClosedPipe // the mount has gone
	}
	done := make(chan error, 1)
	go func() {
		err := guard(op)
		if err != nil && err != errNoData {
			f.handles.complain(f.handle, err)
			err = ioError{err}
		}
		f.handles.end(f.handle)
		f.slots <- slot
		done <- err
	}()
	result, err := await(ctx, done)
	if err != nil {
		return err
	}
	return result
}

// An ioError is EIO whatever it wraps: a chunk that is missing is no missing
// file.
type ioError struct{ err error }

func (e ioError) Error() string { return e.err.Error() }

// readFull reads len(p) bytes at off.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return fmt.Errorf("read %d bytes at %d: it ends after %d", len(p), off, n)
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// seekData returns the first offset in [off, size) that has data, or errNoData.
func seekData(l layers.Layer, off, size int64) (int64, error) {
	for e, err := range l.Extents(off, size-off) {
		if err != nil {
			return 0, fmt.Errorf("extents from %d on: %w", off, err)
		}
		if e.Kind == layers.Data && e.Len > 0 {
			return max(e.Off, off), nil
		}
	}
	return 0, errNoData
}

// seekHole returns the first offset in [off, size] that has none; the end of
// the image counts as a hole.
func seekHole(l layers.Layer, off, size int64) (int64, error) {
	pos := off
	for e, err := range l.Extents(off, size-off) {
		if err != nil {
			return 0, fmt.Errorf("extents from %d on: %w", off, err)
		}
		if e.Off > pos || e.Kind != layers.Data {
			return pos, nil
		}
		pos = max(pos, e.End())
	}
	return min(pos, size), nil
}

// A buffer is the answer to a read. It is used again when the answer has been
// written to the kernel.
type buffer struct {
	whole *[maxRequest]byte // nil: data is larger
	data  []byte
}

var buffers = sync.Pool{New: func() any { return new([maxRequest]byte) }}

func newBuffer(n int) *buffer {
	if n > maxRequest {
		return &buffer{data: make([]byte, n)}
	}
	whole := buffers.Get().(*[maxRequest]byte)
	return &buffer{whole: whole, data: whole[:n]}
}

// Size, Bytes and Done make a buffer a gofuse.ReadResult; with Slices the
// library writes it to the kernel without copying it first.
func (b *buffer) Size() int { return len(b.data) }

func (b *buffer) Bytes(p []byte) ([]byte, gofuse.Status) {
	return p[:copy(p, b.data)], gofuse.OK
}

func (b *buffer) Slices() ([][]byte, gofuse.Status) { return [][]byte{b.data}, gofuse.OK }

func (b *buffer) Done() {
	if b.whole != nil {
		buffers.Put(b.whole)
	}
	b.whole, b.data = nil, nil
}
