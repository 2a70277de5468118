package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/layers"
	"varve/nbd"
	"varve/nbd/nbdtest"
)

// connect dials an export with the client under test, until the test ends.
func connect(t testing.TB, uri string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(context.Background(), uri, nbd.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func unixURI(path, export string) string {
	return "nbd+unix:///" + export + "?socket=" + url.QueryEscape(path)
}

func TestClientIsADevice(t *testing.T) {
	nbdtest.RunSparse(t, func(t *testing.T) nbd.Device {
		s := newShelf(nbd.Export{Name: "d", Device: nbdtest.NewMemory(nbdtest.Size)})
		return connect(t, unixURI(serve(t, &nbd.Server{Open: s.Open}), "d"))
	})
}

// TestClientWithOtherServers: V8. Each server says other things about itself.
func TestClientWithOtherServers(t *testing.T) {
	for _, c := range []struct {
		name, program string
		args          []string // %s is the socket, %f a file of nbdtest.Size zeros
		sparse        bool
	}{
		{"qemu-nbd", "qemu-nbd", []string{"-t", "-f", "raw", "-e", "9", "--discard=unmap", "-k", "%s", "%f"}, true},
		{"nbdkit memory", "nbdkit", []string{"-f", "-U", "%s", "memory", fmt.Sprint(nbdtest.Size)}, true},
		{"nbdkit file", "nbdkit", []string{"-f", "-U", "%s", "file", "%f"}, true},
		{"nbdkit, simple replies", "nbdkit", []string{"-f", "--no-sr", "-U", "%s", "memory", fmt.Sprint(nbdtest.Size)}, false},
		{"nbdkit, EXPORT_NAME only", "nbdkit", []string{"-f", "--mask-handshake=1", "--no-sr", "-U", "%s", "memory", fmt.Sprint(nbdtest.Size)}, false},
		{"nbdkit, no write zeroes", "nbdkit", []string{"-f", "--filter=nozero", "-U", "%s", "memory", fmt.Sprint(nbdtest.Size)}, true},
		{"nbdkit, blocks of 4 to 64 KiB", "nbdkit", []string{"-f", "--filter=blocksize-policy", "-U", "%s", "memory", fmt.Sprint(nbdtest.Size),
			"blocksize-minimum=4096", "blocksize-preferred=8192", "blocksize-maximum=65536", "blocksize-error-policy=error"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			need(t, c.program)
			nbdtest.Run(t, func(t *testing.T) nbd.Device {
				d := connect(t, unixURI(startPeer(t, c.program, c.args), ""))
				if d.Sparse() != c.sparse {
					t.Errorf("Sparse() = %v, want %v", d.Sparse(), c.sparse)
				}
				return d
			})
		})
	}
}

// startPeer starts a server and returns its socket once it can be dialed.
func startPeer(t testing.TB, program string, args []string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "np") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, nbdtest.Size); err != nil {
		t.Fatal(err)
	}
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.NewReplacer("%s", socket, "%f", file).Replace(args[i])
	}
	startPeerAt(t, socket, program, args)
	return socket
}

// startPeerAt starts a server and waits until its socket can be dialed.
func startPeerAt(t testing.TB, socket, program string, args []string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	late := time.After(patience)
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s %v: %v\n%s", program, args, err, said.String())
		case <-late:
			t.Fatalf("%s does not listen", program)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestClientOverTCP(t *testing.T) {
	s := newShelf(nbd.Export{Name: "a b", Device: nbdtest.NewMemory(1 << 20)})
	at := serveOn(t, &nbd.Server{Open: s.Open}, "tcp", "127.0.0.1:0")
	c := connect(t, fmt.Sprintf("nbd://%s/a%%20b", at))
	if _, err := c.WriteAt([]byte("x"), 5); err != nil || c.Size() != 1<<20 {
		t.Errorf("size %d, write: %v", c.Size(), err)
	}
}

// TestClientErrors: a refusal of one request leaves the connection alone.
func TestClientErrors(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Write = func(off, n int64) error { return fmt.Errorf("no room: %w", syscall.ENOSPC) }
	m.Faults.Read = func(off, n int64) error { return errors.New("a broken disk") }
	s := newShelf(nbd.Export{Name: "bad", Device: m},
		nbd.Export{Name: "ro", Device: nbd.ReadOnly(nbdtest.NewMemory(4096)), ReadOnly: true})
	path := serve(t, &nbd.Server{Open: s.Open})
	c := connect(t, unixURI(path, "bad"))
	if _, err := c.WriteAt(make([]byte, 10), 0); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "write") {
		t.Errorf("write: %v", err)
	}
	if _, err := c.ReadAt(make([]byte, 10), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("flush after refusals: %v", err)
	}
	ro := connect(t, unixURI(path, "ro"))
	if _, err := ro.WriteAt([]byte{1}, 0); !errors.Is(err, fs.ErrPermission) || !ro.ReadOnly() {
		t.Errorf("write to a read-only export: %v", err)
	}
	if err := ro.WriteZeroes(0, 1); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("zeros to a read-only export: %v", err)
	}
	if _, err := nbd.Dial(t.Context(), unixURI(path, "none"), nbd.ClientOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial an export that is not there: %v", err)
	}
	if _, err := nbd.Dial(t.Context(), unixURI(path+"x", ""), nbd.ClientOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial a socket that is not there: %v", err)
	}
}

// TestClientEnds: whatever ends a connection ends all calls, with one error.
func TestClientEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(c *nbd.Client, cancel context.CancelFunc, server net.Conn)
		want error
	}{
		{"Close", func(c *nbd.Client, _ context.CancelFunc, _ net.Conn) { c.Close() }, layers.ErrClosed},
		{"context", func(_ *nbd.Client, cancel context.CancelFunc, _ net.Conn) { cancel() }, context.Canceled},
		{"server", func(_ *nbd.Client, _ context.CancelFunc, server net.Conn) { server.Close() }, nil},
		{"garbage", func(_ *nbd.Client, _ context.CancelFunc, server net.Conn) { server.Write(make([]byte, 100)) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			path, conns := silentServer(t)
			client, err := nbd.Dial(ctx, unixURI(path, ""), nbd.ClientOptions{InFlight: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server := <-conns
			var wg sync.WaitGroup
			errs := make([]error, 12) // more than may be in flight
			for i := range errs {
				wg.Go(func() { _, errs[i] = client.ReadAt(make([]byte, 512), 0) })
			}
			if _, err := io.ReadFull(server, make([]byte, 4*28)); err != nil {
				t.Fatal(err)
			}
			c.end(client, cancel, server)
			wg.Wait()
			for _, err := range errs {
				if err == nil || err.Error() != errs[0].Error() || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("error %v, the first is %v, want %v", err, errs[0], c.want)
				}
			}
			if err := client.Flush(); err == nil || err.Error() == "" {
				t.Error("a flush after the end succeeds")
			}
		})
	}
}

// TestClientRepliesOutOfOrder: chunks of a read may come in any order, and
// replies too.
func TestClientRepliesOutOfOrder(t *testing.T) {
	c := against(t, func(server net.Conn) {
		a, b := make([]byte, 28), make([]byte, 28)
		io.ReadFull(server, a)
		io.ReadFull(server, b)
		for _, r := range [][]byte{b, a} {
			off, cookie := be64(r[16:]), r[8:16]
			for _, i := range []uint64{3, 1, 0, 2} {
				server.Write(wire(uint32(wireStructuredMagic), uint16(0), uint16(chunkData), cookie, uint32(9), off+i, []byte{byte(off + i)}))
			}
			server.Write(wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkNone), cookie, uint32(0)))
		}
	})
	var wg sync.WaitGroup
	for _, off := range []int64{8, 100} {
		wg.Go(func() {
			p := make([]byte, 4)
			_, err := c.ReadAt(p, off)
			if want := []byte{byte(off), byte(off + 1), byte(off + 2), byte(off + 3)}; err != nil || !bytes.Equal(p, want) {
				t.Errorf("read %v, %v; want %v", p, err, want)
			}
		})
	}
	wg.Wait()
}

// TestClientRefusesBreaches: a server that answers what was not asked loses the
// client, which says what was wrong.
func TestClientRefusesBreaches(t *testing.T) {
	chunk := func(cookie []byte, kind, flags uint16, parts ...any) []byte {
		data := wire(parts...)
		return wire(uint32(wireStructuredMagic), flags, kind, cookie, uint32(len(data)), data)
	}
	for _, c := range []struct {
		name  string
		reply func(cookie []byte) []byte // to a read of 4096 bytes at 4096
	}{
		{"another cookie", func([]byte) []byte { return chunk([]byte("xxxxxxxx"), chunkNone, 1) }},
		{"no data", func(k []byte) []byte { return chunk(k, chunkNone, 1) }},
		{"half the data", func(k []byte) []byte { return chunk(k, chunkData, 1, uint64(4096), make([]byte, 2048)) }},
		{"data before the range", func(k []byte) []byte { return chunk(k, chunkData, 1, uint64(4095), make([]byte, 4096)) }},
		{"data beyond the range", func(k []byte) []byte { return chunk(k, chunkData, 1, uint64(4096), make([]byte, 4097)) }},
		{"data far away", func(k []byte) []byte { return chunk(k, chunkData, 1, ^uint64(0)-7, make([]byte, 8)) }},
		{"data twice", func(k []byte) []byte {
			return append(chunk(k, chunkData, 0, uint64(4096), make([]byte, 4096)), chunk(k, chunkHole, 1, uint64(4096), uint32(1))...)
		}},
		{"an empty hole", func(k []byte) []byte { return chunk(k, chunkHole, 1, uint64(4096), uint32(0)) }},
		{"a hole of 4 GiB", func(k []byte) []byte { return chunk(k, chunkHole, 1, uint64(4096), ^uint32(0)) }},
		{"a block status", func(k []byte) []byte { return chunk(k, chunkStatus, 1, uint32(1), uint32(4096), uint32(0)) }},
		{"a huge chunk", func(k []byte) []byte {
			return wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkData), k, ^uint32(0), uint64(4096))
		}},
		{"a huge error", func(k []byte) []byte {
			return wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkError), k, ^uint32(0))
		}},
		{"an error of no number", func(k []byte) []byte { return chunk(k, chunkError, 1, uint32(0), uint16(0)) }},
		{"an unknown chunk", func(k []byte) []byte { return chunk(k, 77, 1) }},
		{"a simple reply", func(k []byte) []byte { return wire(uint32(wireSimpleMagic), uint32(0), k, make([]byte, 4096)) }},
		{"another magic", func(k []byte) []byte { return make([]byte, 64) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := against(t, func(server net.Conn) {
				r := make([]byte, 28)
				io.ReadFull(server, r)
				server.Write(c.reply(r[8:16]))
			})
			_, err := client.ReadAt(make([]byte, 4096), 4096)
			if err == nil || !strings.Contains(err.Error(), "breaks the NBD protocol") {
				t.Errorf("error %v, want one that says that the server breaks the protocol", err)
			}
		})
	}
}

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		uri     string
		want    nbd.Address
		refused string
	}{
		{"nbd+unix:///?socket=/run/s", nbd.Address{Network: "unix", Host: "/run/s"}, ""},
		{"nbd+unix:///a%2Fb@c?socket=/run/a%20b", nbd.Address{Network: "unix", Host: "/run/a b", Export: "a/b@c"}, ""},
		{"nbd://host", nbd.Address{Network: "tcp", Host: "host:10809"}, ""},
		{"nbd://host:1/x/y", nbd.Address{Network: "tcp", Host: "host:1", Export: "x/y"}, ""},
		{"nbd://[::1]/x", nbd.Address{Network: "tcp", Host: "[::1]:10809", Export: "x"}, ""},
		{"nbd://host//x", nbd.Address{Network: "tcp", Host: "host:10809", Export: "/x"}, ""},
		{"nbd:unix:/run/s", nbd.Address{Network: "unix", Host: "/run/s"}, ""},
		{"nbd:unix:/run/s:exportname=x:y", nbd.Address{Network: "unix", Host: "/run/s", Export: "x:y"}, ""},
		{"nbd:host:1:exportname=x", nbd.Address{Network: "tcp", Host: "host:1", Export: "x"}, ""},
		{"nbds://host", nbd.Address{Network: "tcp", Host: "host:10809", TLS: true, ServerName: "host"}, ""},
		{"nbds+unix:///e?socket=s&tls-certificates=/d&tls-hostname=h", nbd.Address{Network: "unix", Host: "s", Export: "e", TLS: true, Certificates: "/d", ServerName: "h"}, ""},
		{"nbds://host/?tls-verify-peer=false", nbd.Address{Network: "tcp", Host: "host:10809", TLS: true, ServerName: "host", Unverified: true}, ""},
		{"nbds://host/?tls-verify-peer=maybe", nbd.Address{}, "not supported"},
		{"nbds://host/?tls-psk-file=f", nbd.Address{}, "not supported"},
		{"nbd://host/?tls-certificates=/d", nbd.Address{}, "goes with nbds"},
		{"nbd+vsock:///", nbd.Address{}, `"nbd+vsock" is not supported`},
		{"nbd+unix:///x", nbd.Address{}, "socket is missing"},
		{"nbd+unix://x?socket=s", nbd.Address{}, "three slashes"},
		{"nbd:///x", nbd.Address{}, "host is missing"},
		{"nbd://h/x?socket=s", nbd.Address{}, "nbd+unix"},
		{"nbd://h/x?tls-certificates=d", nbd.Address{}, "goes with nbds"},
		{"nbd://user@h/x", nbd.Address{}, "a user"},
		{"nbd:unix:", nbd.Address{}, "socket is missing"},
		{"nbd:host", nbd.Address{}, "want nbd://"},
		{"nbd://h/%zz", nbd.Address{}, "invalid URL escape"},
		{"nbd://h/" + strings.Repeat("x", 5000), nbd.Address{}, "5000 bytes"},
	} {
		got, err := nbd.ParseURI(c.uri)
		if c.refused == "" && (err != nil || got != c.want) {
			t.Errorf("ParseURI(%q) = %+v, %v; want %+v", c.uri, got, err, c.want)
		}
		if c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("ParseURI(%q): error %v, want one with %q", c.uri, err, c.refused)
		}
		if !nbd.IsURI(c.uri) {
			t.Errorf("IsURI(%q) = false", c.uri)
		}
	}
	for _, s := range []string{"", "-", "file", "nbd", "./nbd:x", "qcow2:x", "nbdx:y"} {
		if nbd.IsURI(s) {
			t.Errorf("IsURI(%q) = true", s)
		}
	}
}

// BenchmarkClient reads 4 KiB at depth 64.
func BenchmarkClient(b *testing.B) {
	m := nbdtest.NewMemory(64 << 20)
	s := newShelf(nbd.Export{Name: "d", Device: m})
	c := connect(b, unixURI(serve(b, &nbd.Server{Open: s.Open}), "d"))
	b.SetBytes(4096)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 4096)
		for i := int64(0); pb.Next(); i++ {
			if _, err := c.ReadAt(p, i*4096%(64<<20)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
