package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"

	"varve/agent"
)

// maxAnswer bounds what the client reads of one answer, in bytes.
const maxAnswer = 256 << 20

// A DaemonAwayError says that no daemon answers at the socket.
type DaemonAwayError struct {
	Socket string
	Err    error // of the connection
}

func (e *DaemonAwayError) Error() string {
	if errors.Is(e.Err, fs.ErrPermission) {
		return fmt.Sprintf("no right to talk to the daemon at %s: run as the user who runs it", e.Socket)
	}
	return fmt.Sprintf("no daemon answers at %s: start it with %q, or name its state folder with --state or VARVE_STATE",
		e.Socket, "varve serve --state "+filepath.Dir(e.Socket))
}

// Unwrap returns the error of the connection.
func (e *DaemonAwayError) Unwrap() error { return e.Err }

// A Client talks to the daemon of a state folder. Its methods are safe for
// concurrent use. Their errors are *Error where the daemon refused, and
// *DaemonAwayError where there is none.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon at the socket. It does not connect
// yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		if err := CheckSocketPath(socket); err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request and reads its answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, body, out any) error {
	answer, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("answer of the daemon to %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		content = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://varve"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(request)
	if err != nil {
		if ctx.Err() != nil && method != http.MethodGet {
			return nil, &UnansweredError{ctx.Err()}
		}
		return nil, c.away(ctx, err)
	}
	if answer.StatusCode >= http.StatusBadRequest {
		defer answer.Body.Close()
		return nil, readError(answer)
	}
	return answer, nil
}

// An UnansweredError says that the caller left before the daemon had answered a
// request that changes something: it may have been done, or have begun.
type UnansweredError struct{ Err error }

func (e *UnansweredError) Error() string {
	return "interrupted before the daemon answered: what was asked for may go on there, and \"varve operation list\" shows whether it does"
}

// Unwrap returns why the caller left.
func (e *UnansweredError) Unwrap() error { return e.Err }

// away tells a daemon that is not there from other failures of a connection.
func (c *Client) away(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := CheckSocketPath(c.socket); err != nil {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR) {
		return &DaemonAwayError{Socket: c.socket, Err: err}
	}
	var plain *url.Error
	if errors.As(err, &plain) {
		err = plain.Err
	}
	return fmt.Errorf("the daemon at %s broke off: %w; see its log", c.socket, err)
}

func readError(answer *http.Response) error {
	e := &Error{Code: answer.StatusCode, RequestID: answer.Header.Get(requestIDHeader)}
	var f fault
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && json.Unmarshal(body, &f) == nil {
		for _, b := range f {
			e.Message, e.Reason = b.Message, b.Reason
		}
	}
	if e.Message == "" {
		e.Message = "the daemon answered " + answer.Status
	}
	return e
}

// path joins the parts, each escaped.
func path(parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// ref is an id or a name as a part of a path. Names that a path cannot carry
// mean no object.
func ref(kind, name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", &Error{Code: http.StatusNotFound, Reason: agent.NotFound, Message: fmt.Sprintf("no %s %q", kind, name)}
	}
	return name, nil
}

// get reads the object of a kind that ref names.
func get[T any](ctx context.Context, c *Client, collection, kind, name string) (out T, err error) {
	name, err = ref(kind, name)
	if err == nil {
		err = c.do(ctx, http.MethodGet, path(collection, name), nil, &out)
	}
	return out, err
}

// call sends an action on the object of a kind that ref names. verb may be
// empty.
func call[T any](ctx context.Context, c *Client, method, collection, kind, name, verb string, body any) (out T, err error) {
	if name, err = ref(kind, name); err != nil {
		return out, err
	}
	p := path(collection, name)
	if verb != "" {
		p += "/" + verb
	}
	err = c.do(ctx, method, p, body, &out)
	return out, err
}

// remove deletes the object of a kind that ref names.
func (c *Client) remove(ctx context.Context, collection, kind, name string) error {
	name, err := ref(kind, name)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path(collection, name), nil, nil)
}
