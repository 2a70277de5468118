// Package swift keeps objects in a container of OpenStack Swift.
//
// The data of an object is one Swift object of the same name behind the prefix:
// no segments, no manifests, no metadata. Every upload carries its MD5, so a
// server never keeps a body that was damaged on its way.
//
// The library (ncw/swift) is used for the protocol alone. Retries, log-ins and
// time limits are turned off in it: it repeats some requests without a pause
// and others never, and holds a lock while it logs in. See [object.Retry] and
// [object.NewTransport].
package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ncw/swift/v2"

	"varve/agent/object"
)

// pageSize is how many names are listed by one request. Servers refuse more
// than they are set up for: 10,000 by default.
const pageSize = 1000

// bulkSize is how many objects one request deletes. The server takes 10 ms and
// more for each, one after the other.
const bulkSize = 500

// Open logs in and returns the Store in a container that exists. env holds the
// credentials in the usual variables, OS_* or ST_*; the process's own
// environment is not looked at.
func Open(ctx context.Context, u object.URL, env map[string]string) (object.Store, error) {
	return open(ctx, u, env, false)
}

// Create is Open, but makes the container if it is not there.
func Create(ctx context.Context, u object.URL, env map[string]string) (object.Store, error) {
	return open(ctx, u, env, true)
}

type store struct {
	container, prefix string
	where             string // for errors
	config            config
	transport         *answers

	gate    chan struct{} // held by who logs in
	session atomic.Pointer[session]

	bulk atomic.Pointer[bool] // whether the server deletes in bulk; nil: not asked yet
}

func open(ctx context.Context, u object.URL, env map[string]string, create bool) (object.Store, error) {
	fail := func(err error) error { return &object.Error{Op: "open", Store: u.String(), Err: err} }
	c, err := readEnv(env)
	if err != nil {
		return nil, fail(err)
	}
	transport, err := object.NewTransport(c.caFile, env)
	if err != nil {
		return nil, fail(err)
	}
	s := &store{
		container: u.Container, prefix: u.Prefix, where: u.String(), config: c,
		transport: &answers{transport}, gate: make(chan struct{}, 1),
	}
	err = s.do(ctx, "open", "", func(ctx context.Context, c *swift.Connection) error {
		err := s.probe(ctx, c)
		if status(err) == http.StatusNotFound && create {
			err = c.ContainerCreate(ctx, s.container, nil)
		}
		return err
	})
	if errors.Is(err, errContainer) {
		err = fail(fmt.Errorf("there is no container %q in this project: %w", s.container, object.ErrNoContainer))
	}
	if err != nil {
		transport.CloseIdleConnections()
		return nil, err
	}
	return s, nil
}

// probe finds out whether the container is there, by a short listing: Swift
// 2.30 on Debian 12 puts a chunk behind the answer to HEAD of a container,
// which has no body, and so spoils the connection for the next request.
func (s *store) probe(ctx context.Context, c *swift.Connection) error {
	_, err := c.ObjectNames(ctx, s.container, &swift.ObjectsOpts{Limit: 1})
	return err
}

// do logs in if need be and calls f; once more with a new log-in if the server
// no longer knows the token.
func (s *store) do(ctx context.Context, op, name string, f func(context.Context, *swift.Connection) error) error {
	ctx = context.WithValue(ctx, noteKey{}, new(note))
	for again := false; ; again = true {
		if err := ctx.Err(); err != nil {
			return s.fail(ctx, op, name, err)
		}
		session, err := s.login(ctx)
		if err == nil {
			err = f(ctx, session.conn)
		}
		if err == nil || err == io.EOF {
			return err
		}
		if again || !s.forgotten(ctx, session, op, err) {
			return s.fail(ctx, op, name, err)
		}
		s.session.CompareAndSwap(session, nil)
	}
}

// askTime bounds how long the server may take to say whether it knows a token.
const askTime = 10 * time.Second

// forgotten reports whether the server no longer knows the token. Swift does not
// wait for the rest of an upload that it refuses: who sends one may see a closed
// connection in place of the answer, and asks without a body.
func (s *store) forgotten(ctx context.Context, session *session, op string, err error) bool {
	if cause := object.NetworkCause(ctx, err); session != nil && op == "put" && cause != nil && object.TemporaryNetwork(cause) {
		ctx, stop := context.WithTimeout(ctx, askTime)
		defer stop()
		err = s.probe(ctx, session.conn)
	}
	return status(err) == http.StatusUnauthorized
}

// key returns the name of the object in the container.
func (s *store) key(name string) string { return object.Join(s.prefix, name) }

func (s *store) Put(ctx context.Context, name string, data []byte) error {
	if err := object.CheckName(name); err != nil {
		return s.fail(ctx, "put", name, err)
	}
	sum := md5.Sum(data)
	hash := hex.EncodeToString(sum[:])
	// With its length the body is sent as it is and not in chunks.
	headers := swift.Headers{"Content-Length": strconv.Itoa(len(data))}
	return s.do(ctx, "put", name, func(ctx context.Context, c *swift.Connection) error {
		body := object.NewUpload(data)
		defer body.Release()
		_, err := c.ObjectPut(ctx, s.container, s.key(name), body, false, hash, "application/octet-stream", headers)
		return err
	})
}

func (s *store) Get(ctx context.Context, name string, p []byte, off int64) (n int, err error) {
	if err := object.CheckName(name); err != nil {
		return 0, s.fail(ctx, "get", name, err)
	}
	if off < 0 {
		return 0, s.fail(ctx, "get", name, errors.New("negative offset"))
	}
	if len(p) == 0 {
		// One byte tells whether the object is there, and goes on to off.
		n, err := s.Get(ctx, name, make([]byte, 1), off)
		if n == 1 {
			return 0, nil
		}
		return 0, err
	}
	err = s.do(ctx, "get", name, func(ctx context.Context, c *swift.Connection) (err error) {
		n, err = s.get(ctx, c, name, p, off)
		if status(err) == http.StatusNotFound {
			// A container that is gone says nothing about its objects.
			if err := s.probe(ctx, c); status(err) == http.StatusNotFound {
				return errContainer
			}
		}
		return err
	})
	return n, err
}

func (s *store) get(ctx context.Context, c *swift.Connection, name string, p []byte, off int64) (int, error) {
	// Ends a body that is not read to its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	file, headers, err := c.ObjectOpen(ctx, s.container, s.key(name), false, swift.Headers{"Range": object.Range(off, len(p))})
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return 0, io.EOF
	}
	if err != nil {
		return 0, err
	}
	defer file.Close() // what it would find out, ReadRange finds too
	length, err := strconv.ParseInt(headers["Content-Length"], 10, 64)
	if err != nil {
		length = -1
	}
	return object.ReadRange(p, off, file, length, headers["Content-Range"])
}

func (s *store) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		options := &swift.ObjectsOpts{Limit: pageSize, Prefix: s.key(prefix)}
		for {
			var page []swift.Object
			err := s.do(ctx, "list", prefix, func(ctx context.Context, c *swift.Connection) (err error) {
				page, err = c.Objects(ctx, s.container, options)
				return err
			})
			if err != nil {
				yield(object.Info{}, err)
				return
			}
			for _, o := range page {
				if o.Name <= options.Marker {
					yield(object.Info{}, s.fail(ctx, "list", prefix, fmt.Errorf("the server lists %q behind %q", o.Name, options.Marker)))
					return
				}
				options.Marker = o.Name
				name, ours := strings.CutPrefix(o.Name, s.key(""))
				if !ours || object.CheckName(name) != nil {
					continue // something else in the same container
				}
				if !yield(object.Info{Name: name, Size: o.Bytes, Modified: o.LastModified}, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

func (s *store) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := object.CheckName(name); err != nil {
			return s.fail(ctx, "delete", name, err)
		}
	}
	bulk := false
	if len(names) > 2 {
		var err error
		if bulk, err = s.deletesInBulk(ctx); err != nil {
			return err
		}
	}
	if !bulk {
		return object.DeleteEach(ctx, names, s.deleteOne)
	}
	for batch := range slices.Chunk(names, bulkSize) {
		if err := s.deleteBulk(ctx, batch); err != nil {
			if e := new(object.Error); errors.As(err, &e) {
				e.Left = slices.Clone(names)
			}
			return err
		}
		names = names[len(batch):]
	}
	return nil
}

func (s *store) deleteOne(ctx context.Context, name string) error {
	return s.do(ctx, "delete", name, func(ctx context.Context, c *swift.Connection) error {
		err := c.ObjectDelete(ctx, s.container, s.key(name))
		if status(err) == http.StatusNotFound {
			return nil
		}
		return err
	})
}

// deletesInBulk says whether the server knows bulk deletes. It must be asked:
// one that does not would take the request for a wish to delete the account.
func (s *store) deletesInBulk(ctx context.Context) (bool, error) {
	if known := s.bulk.Load(); known != nil {
		return *known, nil
	}
	var info swift.SwiftInfo
	err := s.do(ctx, "delete", "", func(ctx context.Context, c *swift.Connection) (err error) {
		info, err = c.QueryInfo(ctx)
		return err
	})
	if e := new(object.Error); errors.As(err, &e) && e.Temporary || ctx.Err() != nil {
		return false, err
	}
	// Some operators hide /info. Then each object is deleted by itself.
	bulk := err == nil && info.SupportsBulkDelete()
	s.bulk.Store(&bulk)
	return bulk, nil
}

func (s *store) deleteBulk(ctx context.Context, names []string) error {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = s.key(name)
	}
	subject := fmt.Sprintf("%s and %d more", names[0], len(names)-1)
	return s.do(ctx, "delete", subject, func(ctx context.Context, c *swift.Connection) error {
		result, err := c.BulkDelete(ctx, s.container, keys)
		for key, err := range result.Errors {
			if status(err) != http.StatusNotFound {
				return fmt.Errorf("%s: %w", path.Base(key), err)
			}
		}
		return err
	})
}
