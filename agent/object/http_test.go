package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"

	"varve/agent/object"
)

// After Release nobody reads the caller's data, not even a client that is late.
func TestUploadReleased(t *testing.T) {
	data := []byte("the data of an object")
	u := object.NewUpload(data)
	p := make([]byte, 10)
	if n, err := u.Read(p); n != 10 || err != nil || !bytes.Equal(p, data[:10]) {
		t.Fatalf("got %d, %v, %q", n, err, p)
	}
	if off, err := u.Seek(0, io.SeekEnd); off != int64(len(data)) || err != nil {
		t.Errorf("Seek to the end: got %d, %v", off, err)
	}
	if _, err := u.Seek(0, io.SeekStart); err != nil {
		t.Error(err)
	}
	u.Release()
	if n, err := u.Read(p); n != 0 || err == nil || err == io.EOF {
		t.Errorf("Read after Release: got %d, %v; want an error that does not look like the end", n, err)
	}
	if _, err := u.Seek(0, io.SeekStart); err == nil {
		t.Error("Seek after Release succeeded")
	}
}

func TestReadRange(t *testing.T) {
	for _, c := range []struct {
		name         string
		n            int
		off          int64
		body         string
		length       int64
		contentRange string
		want         string
		err          error // nil; io.EOF; io.ErrUnexpectedEOF; or anything else
	}{
		{"inside", 4, 2, "cdef", 4, "bytes 2-5/8", "cdef", nil},
		{"over the end", 9, 6, "gh", 2, "bytes 6-7/8", "gh", io.EOF},
		{"the whole instead", 4, 0, "abcdefgh", 8, "", "abcd", nil},
		{"a shorter whole", 9, 0, "abcdefgh", 8, "", "abcdefgh", io.EOF},
		{"empty object", 9, 0, "", 0, "", "", io.EOF},
		{"cut", 8, 0, "abc", 8, "bytes 0-7/8", "abc", io.ErrUnexpectedEOF},
		{"cut before the first byte", 8, 0, "", 8, "bytes 0-7/8", "", io.ErrUnexpectedEOF},
		{"more than was asked for", 2, 0, "abcd", 4, "bytes 0-3/8", "ab", nil},
		{"another range", 2, 4, "ab", 2, "bytes 0-1/8", "", errAny},
		{"an offset that only begins alike", 2, 1, "ab", 2, "bytes 10-11/80", "", errAny},
		{"range ignored", 2, 4, "abcdefgh", 8, "", "", errAny},
		{"no length", 2, 0, "ab", -1, "bytes 0-1/8", "", errAny},
	} {
		p := make([]byte, c.n)
		n, err := object.ReadRange(p, c.off, strings.NewReader(c.body), c.length, c.contentRange)
		ok := err == c.err
		if c.err == errAny {
			ok = err != nil && err != io.EOF && err != io.ErrUnexpectedEOF
		}
		if string(p[:n]) != c.want || !ok {
			t.Errorf("%s: got %q, %v; want %q, %v", c.name, p[:n], err, c.want, c.err)
		}
	}
}

var errAny = errors.New("any error")

// An end of a connection is no end of an object, and a slow dial is no end of
// the caller's context.
func TestNetworkCause(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	request := func(err error) error { return &url.Error{Op: "Get", URL: "http://host/?key=hunter2", Err: err} }
	for _, c := range []struct {
		name     string
		ctx      context.Context
		err      error
		is       error // the cause is this
		isNot    error
		noTrace  string
		foreign  bool // not of the network
		canRetry bool
	}{
		{name: "closed", err: request(io.EOF), is: io.ErrUnexpectedEOF, isNot: io.EOF, noTrace: "hunter2", canRetry: true},
		{name: "cut", err: fmt.Errorf("read: %w", io.ErrUnexpectedEOF), is: io.ErrUnexpectedEOF, canRetry: true},
		{name: "slow dial", err: request(context.DeadlineExceeded), isNot: context.DeadlineExceeded, canRetry: true},
		{name: "ended", ctx: ended, err: request(io.EOF), is: context.Canceled},
		{name: "an answer", err: errors.New("404"), foreign: true},
	} {
		ctx := c.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		cause := object.NetworkCause(ctx, c.err)
		if c.foreign != (cause == nil) {
			t.Errorf("%s: got %v", c.name, cause)
		}
		if cause == nil {
			continue
		}
		if c.is != nil && !errors.Is(cause, c.is) || c.isNot != nil && errors.Is(cause, c.isNot) {
			t.Errorf("%s: got %v, want it to be %v and not %v", c.name, cause, c.is, c.isNot)
		}
		if c.noTrace != "" && strings.Contains(cause.Error(), c.noTrace) {
			t.Errorf("%s: the cause tells %s: %v", c.name, c.noTrace, cause)
		}
		if got := object.TemporaryNetwork(cause); got != c.canRetry {
			t.Errorf("%s: temporary is %v, want %v", c.name, got, c.canRetry)
		}
	}
}
