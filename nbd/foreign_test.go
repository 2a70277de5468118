package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// need skips the test if the machine lacks a program; with STRICT=1 it fails.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("STRICT") == "1" {
			t.Fatalf("%s is not installed: see e2e/setup.sh", p)
		}
		t.Skipf("%s is not installed", p)
	}
}

// run runs a program and returns what it prints; it fails the test if the
// program fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestForeignClients runs clients that others wrote, over a unix socket and over
// loopback TCP.
func TestForeignClients(t *testing.T) {
	b := newRig(t)
	tcp := serveOn(t, b.server, "tcp", "127.0.0.1:0").(*net.TCPAddr)
	for _, network := range []struct {
		name string
		uri  func(export string) string
	}{
		{"unix", func(export string) string { return "nbd+unix:///" + export + "?socket=" + b.path }},
		{"tcp", func(export string) string { return fmt.Sprintf("nbd://127.0.0.1:%d/%s", tcp.Port, export) }},
	} {
		for _, c := range foreignClients {
			t.Run(network.name+"/"+c.name, func(t *testing.T) {
				need(t, c.needs...)
				c.test(t, b, network.uri)
			})
		}
	}
}

var foreignClients = []struct {
	name  string
	needs []string
	test  func(t *testing.T, b *rig, uri func(string) string)
}{
	{"nbdinfo lists the exports", []string{"nbdinfo"}, func(t *testing.T, b *rig, uri func(string) string) {
		out := run(t, "nbdinfo", "--list", uri(""))
		for _, want := range []string{`export="main"`, `export="ro"`, "description: a disk", "base:allocation",
			"can_multi_conn: true", "can_fast_zero: true", "can_cache: true", "can_df: true", "is_read_only: true",
			"block_size_maximum: 33554432"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
		for _, can := range []string{"connect", "flush", "fua", "trim", "zero", "fast-zero", "df", "cache", "multi-conn", "structured-reply", "write"} {
			run(t, "nbdinfo", "--can", can, uri("main"))
		}
		run(t, "nbdinfo", "--is", "read-only", uri("ro"))
		run(t, "nbdinfo", "--json", uri("main"))
	}},
	{"nbdinfo maps data and holes", []string{"nbdinfo"}, func(t *testing.T, b *rig, uri func(string) string) {
		b.main.WriteZeroes(0, mainSize)
		b.main.WriteAt(pattern(1, 1<<20), 8<<20)
		got := strings.Fields(run(t, "nbdinfo", "--map", uri("main")))
		want := fmt.Sprint([]any{0, 8 << 20, 3, "hole,zero", 8 << 20, 1 << 20, 0, "data", 9 << 20, mainSize - 9<<20, 3, "hole,zero"})
		if fmt.Sprint(got) != want {
			t.Errorf("map %v, want %v", got, want)
		}
	}},
	{"nbdcopy in and out", []string{"nbdcopy"}, func(t *testing.T, b *rig, uri func(string) string) {
		dir := t.TempDir()
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		want := make([]byte, mainSize)
		copy(want[5<<20:], pattern(2, 20<<20))
		copy(want[80<<20+4096:], pattern(3, 1<<20))
		if err := os.WriteFile(in, want, 0o600); err != nil {
			t.Fatal(err)
		}
		b.main.WriteAt(pattern(4, 4096), 0)
		run(t, "nbdcopy", "--flush", in, uri("main"))
		run(t, "nbdcopy", uri("main"), out)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("copied in and out: other bytes (%v)", err)
		}
	}},
	{"qemu-io writes, reads, zeroes and discards", []string{"qemu-io"}, func(t *testing.T, b *rig, uri func(string) string) {
		args := []string{"-f", "raw", "-t", "writeback"}
		for _, c := range []string{
			"write -P 0x41 0 64k", "write -P 0x42 65536 3M", "read -P 0x41 0 64k", "write -z 1M 64k", "read -P 0 1M 64k",
			"write -z -u 2M 64k", "read -P 0 2M 64k", "discard 0 32k", "read -P 0 0 32k", "read -P 0x41 32k 32k",
			"write -f -P 7 5M 1M", "read -P 7 5M 1M", "write -P 9 12345 777", "read -P 9 12345 777", "flush",
			"aio_write -P 3 10M 512k", "aio_write -P 4 11M 512k", "aio_flush", "read -P 3 10M 512k", "read -P 4 11M 512k",
		} {
			args = append(args, "-c", c)
		}
		if out := run(t, "qemu-io", append(args, uri("main"))...); strings.Contains(out, "failed") {
			t.Error(out)
		}
	}},
	{"qemu-img info, map, convert, compare, bench", []string{"qemu-img"}, func(t *testing.T, b *rig, uri func(string) string) {
		dir := t.TempDir()
		copied := filepath.Join(dir, "copy.qcow2")
		b.main.WriteAt(pattern(5, 10<<20), 3<<20)
		run(t, "qemu-img", "info", uri("main"))
		run(t, "qemu-img", "map", "-f", "raw", "--output=json", uri("main"))
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri("main"), copied)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri("main"), copied)
		b.main.WriteZeroes(0, mainSize)
		run(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copied, uri("main"))
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri("main"), copied)
		run(t, "qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "64", uri("main"))
		run(t, "qemu-img", "bench", "-f", "raw", "-w", "-t", "writeback", "--flush-interval=32", "-c", "2000", "-d", "32", uri("main"))
	}},
	{"fio verifies", []string{"fio"}, func(t *testing.T, b *rig, uri func(string) string) {
		run(t, "fio", "--name=small", "--ioengine=nbd", "--uri="+uri("main"), "--rw=randwrite", "--bs=4k", "--size=32m",
			"--iodepth=64", "--fsync=32", "--verify=crc32c", "--verify_fatal=1")
		run(t, "fio", "--name=mixed", "--ioengine=nbd", "--uri="+uri("main"), "--rw=randrw", "--bsrange=512-1m", "--bs_unaligned",
			"--size=64m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1")
		run(t, "fio", "--name=trim", "--ioengine=nbd", "--uri="+uri("main"), "--rw=randtrimwrite", "--bs=16k", "--size=32m", "--iodepth=16")
	}},
	{"nbdkit's nbd plugin in front", []string{"nbdkit", "nbdcopy"}, func(t *testing.T, b *rig, uri func(string) string) {
		b.main.WriteAt(pattern(6, 1<<20), 1<<20)
		out := filepath.Join(t.TempDir(), "out")
		run(t, "nbdkit", "-U", "-", "nbd", "uri="+uri("main"), "--run", `nbdcopy "$uri" `+out)
		got, err := os.ReadFile(out)
		if err != nil || len(got) != mainSize || !bytes.Equal(got[1<<20:2<<20], pattern(6, 1<<20)) {
			t.Errorf("copied through nbdkit: other bytes (%v)", err)
		}
	}},
	{"nbddump shows what is there", []string{"nbddump"}, func(t *testing.T, b *rig, uri func(string) string) {
		b.main.WriteZeroes(0, mainSize)
		b.main.WriteAt([]byte("varve was here"), 1<<20)
		if out := run(t, "nbddump", uri("main")); !strings.Contains(out, "varve was here") {
			t.Errorf("nbddump:\n%s", out)
		}
	}},
	{"nbdsh, what a good client would not send", []string{"nbdsh"}, func(t *testing.T, b *rig, uri func(string) string) {
		// nbdsh takes the first python3 of the PATH; the module is with Debian's.
		run(t, "env", "PATH=/usr/bin:/bin", "nbdsh", "--base-allocation", "-u", uri("main"), "-c", `
import errno
h.set_strict_mode(0)
def refused(number, act, *args):
    try:
        act(*args)
    except nbd.Error as e:
        assert e.errnum == number, (act, args, e)
    else:
        raise AssertionError((act, args))
size = h.get_size()
h.pwrite(b"x" * 512, 0)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size)
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.ENOSPC, h.zero, 512, size)
assert h.pread(512, 0) == b"x" * 512
h.shutdown()
`)
	}},
}

// TestNBDClientLists: the reference implementation's client. It speaks TCP only
// for listing.
func TestNBDClientLists(t *testing.T) {
	need(t, "nbd-client")
	b := newRig(t)
	tcp := serveOn(t, b.server, "tcp", "127.0.0.1:0").(*net.TCPAddr)
	out := run(t, "nbd-client", "-l", "127.0.0.1", "-p", fmt.Sprint(tcp.Port))
	if !strings.Contains(out, "main") || !strings.Contains(out, "ro") {
		t.Errorf("nbd-client -l:\n%s", out)
	}
}

// TestSixteenForeignConnections: nbdcopy with as many connections as
// CAN_MULTI_CONN allows it.
func TestSixteenForeignConnections(t *testing.T) {
	need(t, "nbdcopy")
	m, n := nbdtest.NewMemory(64<<20), nbdtest.NewMemory(64<<20)
	m.WriteAt(pattern(1, 64<<20), 0)
	s := newShelf(nbd.Export{Name: "from", Device: m}, nbd.Export{Name: "to", Device: n})
	path := serve(t, &nbd.Server{Open: s.Open})
	uri := func(name string) string { return "nbd+unix:///" + name + "?socket=" + path }
	run(t, "nbdcopy", "--connections=16", "--threads=4", "--requests=64", "--flush", uri("from"), uri("to"))
	got := make([]byte, 64<<20)
	if _, err := n.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1, 64<<20)) {
		t.Errorf("the copy differs (%v)", err)
	}
}
