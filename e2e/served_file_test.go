package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rawFile makes a file of size bytes for varve nbd, and returns its folder, with
// a path that is short enough for a socket beside it.
func rawFile(t *testing.T, size int64) (dir, file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "varve-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file = filepath.Join(dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

// TestActivatedSockets: sockets of a service manager are held to the same rule
// as --nbd-listen: TCP that other machines reach is refused without TLS.
func TestActivatedSockets(t *testing.T) {
	dir, file := rawFile(t, 1<<20)
	for _, c := range []struct {
		network, address string
		args             []string
		refused          bool
	}{
		{"tcp4", "0.0.0.0:0", nil, true},
		{"tcp6", "[::]:0", nil, true},
		{"tcp4", "0.0.0.0:0", []string{"--insecure"}, false},
		{"tcp4", "127.0.0.1:0", nil, false},
		{"tcp6", "[::1]:0", nil, false},
		{"unix", filepath.Join(dir, "s"), nil, false},
	} {
		t.Run(strings.Join(append([]string{c.address}, c.args...), " "), func(t *testing.T) {
			l, err := net.Listen(c.network, c.address)
			if c.network == "tcp6" && err != nil {
				t.Skip(err) // a machine without IPv6
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// LISTEN_PID is the process's own number.
			args := append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", program, "nbd", "--format", "raw", file}, c.args...)
			cmd := exec.CommandContext(t.Context(), "sh", args...)
			cmd.ExtraFiles = []*os.File{f}
			var errout bytes.Buffer
			cmd.Stderr = &errout
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := make([]byte, 4096)
			n, _ := out.Read(said) // its end, if it is refused
			cmd.Process.Signal(syscall.SIGTERM)
			err = cmd.Wait()
			switch {
			case c.refused && (err == nil || n > 0 || !strings.Contains(errout.String(), "--tls-certificates") || !strings.Contains(errout.String(), "--insecure")):
				t.Errorf("it was not refused with both cures: %v, %q, %s", err, said[:n], &errout)
			case !c.refused && (err != nil || !bytes.Contains(said[:n], []byte("serving"))):
				t.Errorf("it is refused: %v, %q, %s", err, said[:n], &errout)
			}
		})
	}
}

// TestStopWithRequestsInFlight: varve nbd that is told to end answers all that
// it has taken, however late the client reads the answers, and ends well. What
// it has not taken it refuses or does not answer; what it says was written is in
// the file.
func TestStopWithRequestsInFlight(t *testing.T) {
	const (
		reads, readSize   = 32, 256 << 10
		writes, writeSize = 256, 32 << 10
		shutdown          = 108 // NBD_ESHUTDOWN
	)
	dir, file := rawFile(t, writes*writeSize)
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(t.Context(), program, "nbd", "--format", "raw", "--nbd-listen", "unix:"+socket, file)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	out.Read(make([]byte, 4096)) // it serves
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))

	// Flags, then EXPORT_NAME of the default export; greeting, size and flags
	// come back.
	hello := binary.BigEndian.AppendUint32(nil, 3)
	hello = append(hello, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	conn.Write(hello)
	if _, err := io.ReadFull(conn, make([]byte, 18+10)); err != nil {
		t.Fatal(err)
	}
	request := func(command uint16, cookie uint64, off, n int) []byte {
		b := binary.BigEndian.AppendUint32(nil, 0x25609513)
		b = binary.BigEndian.AppendUint32(b, uint32(command))
		b = binary.BigEndian.AppendUint64(b, cookie)
		b = binary.BigEndian.AppendUint64(b, uint64(off))
		return binary.BigEndian.AppendUint32(b, uint32(n))
	}
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i) | 1}, writeSize) }
	for i := range reads {
		conn.Write(request(0, uint64(writes+i), 0, readSize))
	}
	for i := range writes {
		_, err := conn.Write(append(request(1, uint64(i), i*writeSize, writeSize), content(i)...))
		if i > writes/2 && errors.Is(err, syscall.EPIPE) {
			break // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		if i == writes/2 { // the rest arrives while it ends
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}

	answered := map[uint64]uint32{} // cookie -> error
	for {
		var head [16]byte
		// A reset tells that it had not read all; what it had answered came first.
		if _, err := io.ReadFull(conn, head[:]); err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
			break
		} else if err != nil {
			t.Fatalf("after %d replies: %v", len(answered), err)
		}
		cookie, code := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[4:])
		if _, twice := answered[cookie]; twice || cookie >= writes+reads || code != 0 && code != shutdown {
			t.Fatalf("reply %x", head)
		}
		answered[cookie] = code
		if cookie >= writes && code == 0 {
			if _, err := io.CopyN(io.Discard, conn, readSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("varve nbd ends with %v: %s", err, &log)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	done := 0
	for cookie, code := range answered {
		if code == 0 {
			done++
		}
		if i := int(cookie); i < writes && code == 0 && !bytes.Equal(got[i*writeSize:(i+1)*writeSize], content(i)) {
			t.Errorf("write %d was answered and is not in the file", i)
		}
	}
	if done == 0 {
		t.Error("nothing that was in flight was answered")
	}
	t.Logf("%d of %d requests were answered, %d of them well", len(answered), writes+reads, done)
}
