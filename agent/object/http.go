package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
)

// What the stores that speak HTTP have in common.

// An Upload is the body of a request that sends data. The HTTP client may still
// read from a body after the call has returned, and a Store does not keep its
// caller's data: Release ends that.
type Upload struct {
	mu sync.Mutex
	r  *bytes.Reader
}

// NewUpload returns a body that is data, from its beginning.
func NewUpload(data []byte) *Upload {
	return &Upload{r: bytes.NewReader(data)}
}

var errReleased = errors.New("the upload has been given up")

func (u *Upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.r == nil {
		return 0, errReleased
	}
	return u.r.Read(p)
}

func (u *Upload) Seek(off int64, whence int) (int64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.r == nil {
		return 0, errReleased
	}
	return u.r.Seek(off, whence)
}

// Release returns when nobody reads from data, and nobody will.
func (u *Upload) Release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.r = nil
}

// Range returns the value of the Range header that asks for n bytes at off: RFC
// 9110 section 14.1.2. n is not 0.
func Range(off int64, n int) string {
	return fmt.Sprintf("bytes=%d-%d", off, off+int64(n)-1)
}

// ReadRange fills p from the answer to a request for len(p) bytes at off, as
// io.ReaderAt does. length is the answer's Content-Length; contentRange its
// Content-Range, empty if the server sent the whole object instead. A body that
// ends before length is a fault of the network, not the end of the object.
func ReadRange(p []byte, off int64, body io.Reader, length int64, contentRange string) (int, error) {
	switch {
	case length < 0:
		return 0, errors.New("the server does not say how long its answer is")
	case contentRange == "" && length == 0:
		return 0, io.EOF
	case contentRange == "" && off > 0:
		return 0, errors.New("the server ignores the range that was asked for")
	case contentRange != "" && !strings.HasPrefix(contentRange, fmt.Sprintf("bytes %d-", off)):
		return 0, fmt.Errorf("the server answers with the range %q, and %s was asked for", contentRange, Range(off, len(p)))
	}
	want := int(min(length, int64(len(p))))
	n, err := io.ReadFull(body, p[:want])
	switch {
	case err == io.EOF:
		return n, io.ErrUnexpectedEOF
	case err != nil:
		return n, err
	case n < len(p):
		return n, io.EOF
	}
	return n, nil
}

// NetworkCause returns what went wrong if err comes from a connection and not
// from a server's answer, or else nil. The cause is in words of its own, without
// the request's URL; it is ctx's error only if ctx has ended (a dial that takes
// too long says context.DeadlineExceeded too), and never io.EOF, which to a
// Store's caller is the end of an object.
func NetworkCause(ctx context.Context, err error) error {
	var (
		request *url.Error
		network net.Error
	)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &request):
		err = request.Err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &network):
	default:
		return nil
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errors.New(err.Error())
	}
	return err
}
