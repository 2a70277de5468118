package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"varve/layers"
	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestDeviceErrors: each error of a device has its number, reaches the request
// that it belongs to, and no other.
func TestDeviceErrors(t *testing.T) {
	for _, e := range []struct {
		err  error
		want uint32
	}{
		{fs.ErrPermission, ePERM},
		{fmt.Errorf("write head: %w", syscall.ENOSPC), eNOSPC},
		{syscall.EDQUOT, eNOSPC},
		{syscall.EFBIG, eNOSPC},
		{fs.ErrInvalid, eINVAL},
		{syscall.EINVAL, eINVAL},
		{layers.ErrClosed, eSHUTDOWN},
		{fs.ErrClosed, eSHUTDOWN},
		{syscall.ENOMEM, 12},
		{errors.ErrUnsupported, eNOTSUP},
		{syscall.EIO, eIO},
		{layers.ErrCorrupt, eIO},
		{errors.New("anything else"), eIO},
	} {
		t.Run(e.err.Error(), func(t *testing.T) {
			var broken atomic.Bool
			fault := func(off, n int64) error {
				if broken.Load() && off < 1<<19 {
					return e.err
				}
				return nil
			}
			m := nbdtest.NewMemory(1 << 20)
			m.Faults = nbdtest.Faults{Read: fault, Write: fault, Zero: fault, Flush: func() error { return fault(0, 0) }}
			s := newShelf(nbd.Export{Name: "x", Device: m})
			path := serve(t, &nbd.Server{Open: s.Open})
			for _, structured := range []bool{false, true} {
				c := dial(t, "unix", path).greet(3)
				if structured {
					c.agreeStructured()
				}
				c.goTo("x")
				broken.Store(true)
				for _, n := range []uint32{512, 100_000} {
					c.expect(e.want, cmdRead, 0, 0, n)
					c.expect(e.want, cmdWrite, 0, 0, n, make([]byte, n)...)
					c.expect(e.want, cmdWrite, fFUA, 1<<19, n, make([]byte, n)...)
					c.expect(e.want, cmdTrim, 0, 0, n)
					c.expect(e.want, cmdZeroes, 0, 0, n)
					c.expect(e.want, cmdZeroes, fNoHole, 0, n)
					c.expect(e.want, cmdCache, 0, 0, n)
					c.expect(0, cmdWrite, 0, 1<<19, n, pattern(1, int64(n))...)
					if !bytes.Equal(c.get(1<<19, n), pattern(1, int64(n))) {
						t.Error("a healthy range reads other bytes")
					}
				}
				c.expect(e.want, cmdFlush, 0, 0, 0)
				broken.Store(false)
				c.expect(0, cmdWrite, 0, 0, 4, 1, 2, 3, 4)
				c.alive()
			}
		})
	}
}

// A safeBuffer is a log that is read while sessions still write it.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestPanics: a panic in the owner's code is an error of one request or option,
// and is logged.
func TestPanics(t *testing.T) {
	var panicking atomic.Bool
	boom := func(int64, int64) error {
		if panicking.Load() {
			panic("boom")
		}
		return nil
	}
	m := nbdtest.NewMemory(1 << 20)
	m.Faults = nbdtest.Faults{Read: boom, Write: boom, Zero: boom, Flush: func() error { return boom(0, 0) }}
	s := newShelf(nbd.Export{Name: "x", Device: m})
	var log safeBuffer
	path := serve(t, &nbd.Server{
		Log:  slog.New(slog.NewTextHandler(&log, nil)),
		List: func(context.Context) ([]nbd.Listing, error) { panic("boom") },
		Open: func(ctx context.Context, name string) (*nbd.Export, error) {
			switch name {
			case "panic":
				panic("boom")
			case "nil device":
				return &nbd.Export{}, nil
			case "close":
				return &nbd.Export{Device: m, Close: func() error { panic("boom") }}, nil
			}
			return s.Open(ctx, name)
		},
	})
	c := dial(t, "unix", path).greet(3)
	c.refused(errPolicy, optList)
	c.refused(errPolicy, optGo, exportArgs("panic"))
	c.refused(errPolicy, optInfo, exportArgs("nil device"))
	c.acked(optInfo, exportArgs("close"))
	c.goTo("x")
	panicking.Store(true)
	for _, n := range []uint32{512, 100_000} {
		c.expect(eIO, cmdRead, 0, 0, n)
		c.expect(eIO, cmdWrite, 0, 0, n, make([]byte, n)...)
		c.expect(eIO, cmdTrim, 0, 0, n)
	}
	c.expect(eIO, cmdFlush, 0, 0, 0)
	panicking.Store(false)
	c.alive()
	c.Close()
	c = dial(t, "unix", path).greet(3)
	c.goTo("x")
	c.alive()
	if text := log.String(); strings.Count(text, "panic=boom") < 10 || !strings.Contains(text, "stack=") {
		t.Errorf("log:\n%s", text)
	}
}

// TestOpenErrors: the reason why an export cannot be had reaches the client.
func TestOpenErrors(t *testing.T) {
	errs := map[string]error{
		"busy":    errors.New("volume busy is attached elsewhere: detach it first"),
		"missing": fmt.Errorf("export missing: %w", fs.ErrNotExist),
		"closed":  layers.ErrClosed,
	}
	path := serve(t, &nbd.Server{
		List: func(context.Context) ([]nbd.Listing, error) { return nil, errors.New("no list today") },
		Open: func(_ context.Context, name string) (*nbd.Export, error) { return nil, errs[name] },
	})
	c := dial(t, "unix", path).greet(3)
	c.agreeStructured()
	for name, want := range map[string]uint32{"busy": errPolicy, "missing": errUnknown, "closed": errShutdown} {
		for _, option := range []uint32{optInfo, optGo} {
			got := c.ask(option, exportArgs(name))
			if len(got) != 1 || got[0].kind != want || string(got[0].data) != errs[name].Error() {
				t.Errorf("option %d of %s: %#x %q", option, name, got[0].kind, got[0].data)
			}
		}
		c.refused(want, optSetMeta, metaArgs(name, "base:allocation"))
	}
	c.refused(errPolicy, optList)
	c.inSync()
}

// TestInfoClosesWhatItOpened: no question about an export leaves it open, and
// the export of a connection is closed once.
func TestInfoClosesWhatItOpened(t *testing.T) {
	b := newRig(t)
	c := b.dial(t).greet(3)
	c.agreeStructured()
	c.acked(optInfo, exportArgs("main", 1, 2, 3))
	c.acked(optSetMeta, metaArgs("main", "base:allocation"))
	c.acked(optListMeta, metaArgs("main"))
	c.refused(errUnknown, optGo, exportArgs("nope"))
	if n := b.shelf.leftOpen(); n != 0 {
		t.Errorf("%d exports are open after questions alone", n)
	}
	c.goTo("main")
	c.alive()
	if n := b.shelf.leftOpen(); n != 1 {
		t.Errorf("%d exports are open in transmission, want 1", n)
	}
	c.Close()
	waitFor(t, "the export is closed", func() bool { return b.shelf.leftOpen() == 0 })
}

// TestFailuresAreLogged with the text of the error, which the client of a simple
// reply never sees, and with what was asked for: small and large, read and
// written.
func TestFailuresAreLogged(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	fault := func(int64, int64) error { return fmt.Errorf("layer 7 of the disk: %w", syscall.EIO) }
	m.Faults = nbdtest.Faults{Read: fault, Write: fault}
	for _, cmd := range []uint16{cmdRead, cmdWrite} {
		for _, n := range []uint32{4096, 256 << 10} {
			var log bytes.Buffer
			server := &nbd.Server{
				Log:  slog.New(slog.NewJSONHandler(&log, nil)),
				Open: newShelf(nbd.Export{Name: "x", Device: m}).Open,
			}
			c := dial(t, "unix", serve(t, server)).greet(3)
			c.goTo("x")
			message := requestBytes(cmd, 0, 1, 8192, n)
			if cmd == cmdWrite {
				message = append(message, make([]byte, n)...)
			}
			c.Write(message)
			if _, errno := c.simple(); errno != eIO {
				t.Errorf("command %d of %d bytes: error %d, want %d", cmd, n, errno, eIO)
			}
			server.Shutdown(t.Context()) // all is logged then
			name := map[uint16]string{cmdRead: "READ", cmdWrite: "WRITE"}[cmd]
			for _, want := range []string{`"error":"layer 7 of the disk: input/output error"`, `"request":"` + name, `"off":8192`, fmt.Sprintf(`"len":%d`, n), `"export":"x"`} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log lacks %s:\n%s", want, &log)
				}
			}
		}
	}
}
