package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/layers"
	"varve/nbd"
	"varve/nbd/nbdtest"
)

// newer is the command line of a program of Debian 13, which e2e/peers.sh
// unpacks. Those of Debian 12 do not speak extended headers.
func newer(t testing.TB, program string, args ...string) []string {
	t.Helper()
	root, err := filepath.Abs("../.tools/peers")
	if err != nil {
		t.Fatal(err)
	}
	linkers, _ := filepath.Glob(filepath.Join(root, "usr/lib*/ld-linux-*"))
	libraries, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if len(linkers) == 0 || len(libraries) == 0 {
		if os.Getenv("STRICT") == "1" {
			t.Fatal("newer peers are missing: see e2e/peers.sh")
		}
		t.Skip("newer peers are missing: see e2e/peers.sh")
	}
	return append([]string{"env", "PYTHONHOME=" + filepath.Join(root, "usr"), linkers[0],
		"--library-path", strings.Join(libraries, ":"), filepath.Join(root, "usr/bin", program)}, args...)
}

// TestNewerClients: extended headers with clients that others wrote.
func TestNewerClients(t *testing.T) {
	b, v := newVastRig(t)
	runNewer := func(program string, args ...string) string {
		t.Helper()
		line := newer(t, program, args...)
		return run(t, line[0], line[1:]...)
	}
	uri := unixURI(b.path, "vast")
	if info := runNewer("nbdinfo", uri); !strings.Contains(info, "using extended packets") {
		t.Errorf("nbdinfo:\n%s", info)
	}
	if _, err := v.WriteAt(pattern(1, 4096), 5<<30); err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(runNewer("nbdinfo", "--map", unixURI(b.path, "other")))
	if want := fmt.Sprint([]any{0, 5 << 30, 3, "hole,zero", 5 << 30, 4096, 0, "data", 5<<30 + 4096, int64(vastSize - 5<<30 - 4096), 3, "hole,zero"}); fmt.Sprint(got) != want {
		t.Errorf("map %v, want %v", got, want)
	}
	runNewer("python3", "-c", `
import nbd, sys
h = nbd.NBD()
for c in ["base:allocation", "x-a:low", "x-a:high"]:
    h.add_meta_context(c)
h.connect_uri(sys.argv[1])
assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
def status(ask, *contexts):
    got = {}
    def note(context, off, extents, err): got[context] = extents
    ask(6 << 30, 0, *contexts, note)
    return got
got = status(h.block_status_64)
assert got["x-a:low"] == [(5 << 30, 1), (1 << 30, 0)], got
assert got["base:allocation"] == [(5 << 30, 3), (4096, 0), ((1 << 30) - 4096, 3)], got
got = status(h.block_status_filter, ["x-a:low"])
assert list(got) == ["x-a:low"], got
h.pwrite(b"x" * 100, 1 << 41)
h.zero(1 << 40, 1 << 41, nbd.CMD_FLAG_FAST_ZERO)
h.trim(6 << 30, 0)
h.cache(6 << 30, 0)
h.flush()
assert h.pread(100, 1 << 41) == bytes(100)
assert status(h.block_status_64)["base:allocation"] == [(6 << 30, 3)]
h.shutdown()
`, uri)
	args := []string{"-f", "raw", "-t", "writeback", "-d", "unmap"}
	for _, c := range []string{"write -P 7 1M 3M", "read -P 7 1M 3M", "write -z -u -n 0 5G", "read -P 0 1M 3M", "write -f -P 9 12345 777", "read -P 9 12345 777", "flush"} {
		args = append(args, "-c", c)
	}
	if out := runNewer("qemu-io", append(args, uri)...); strings.Contains(out, "failed") {
		t.Error(out)
	}
	p := make([]byte, 777)
	if _, err := v.ReadAt(p, 12345); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{9}, 777)) {
		t.Errorf("what qemu-io wrote is not there: %v", err)
	}
}

// TestClientWithNewerServer: our client speaks extended headers to QEMU.
func TestClientWithNewerServer(t *testing.T) {
	line := newer(t, "qemu-nbd", "-t", "-f", "raw", "-e", "9", "-A", "--discard=unmap", "-k", "%s", "%f")
	nbdtest.Run(t, func(t *testing.T) nbd.Device {
		return connect(t, unixURI(startPeer(t, line[0], line[1:]), ""))
	})
	t.Run("nbd-server", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "ns") // a socket's path has at most 107 bytes
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		line := newer(t, "nbd-server", "-n", "-C", filepath.Join(dir, "config"))
		config := "[generic]\nunixsock=%s\nallowlist=true\n[disk]\nexportname=%s\nflush=true\nfua=true\ntrim=true\n"
		nbdtest.Run(t, func(t *testing.T) nbd.Device {
			socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "f")
			os.Remove(socket)
			if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, nbdtest.Size),
				os.WriteFile(filepath.Join(dir, "config"), fmt.Appendf(nil, config, socket, file), 0o600)); err != nil {
				t.Fatal(err)
			}
			startPeerAt(t, socket, line[0], line[1:])
			return connect(t, unixURI(socket, "disk"))
		})
	})
	c, err := nbd.Dial(t.Context(), unixURI(startPeer(t, line[0], line[1:]), ""), nbd.ClientOptions{Contexts: []string{"qemu:allocation-depth"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.Extended() {
		t.Error("extended headers were not agreed on")
	}
	if _, err := c.WriteAt(pattern(1, 4096), 64<<10); err != nil {
		t.Fatal(err)
	}
	var got []layers.Run
	for r, err := range c.Runs("qemu:allocation-depth", 0, c.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if len(got) == 0 || got[0].Off != 0 || got[len(got)-1].End() != c.Size() {
		t.Errorf("runs %v do not cover %d bytes", got, c.Size())
	}
}
