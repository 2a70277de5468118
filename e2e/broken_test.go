package e2e

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBrokenDisk lets the disk below the state folder fail while clients write:
// its writes, or its flushes alone. They get I/O errors; from then on no flush
// succeeds, also when the disk is well again, since the kernel may have dropped
// what it could not write; and after a power loss and a new start all is there
// that was promised. V9
func TestBrokenDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, what := range []string{"writes", "flushes"} {
			t.Run(kind+" "+what, func(t *testing.T) { testBrokenDisk(t, kind, what == "writes") })
		}
	}
}

func testBrokenDisk(t *testing.T, kind string, writes bool) {
	o := newOutage(t, program, kind, 1, false)
	h := o.history
	knock := startKnocker(t, h.d)
	if got := knock(); got != "ok ok" {
		t.Fatalf("write and flush on a disk that is well: %s", got)
	}
	if err := h.write(); err != nil {
		t.Fatal(err)
	}
	ledgers := h.line().ledgers
	await(t, "clients have promises", func() bool { return ledgers[0].promised() > 30 && ledgers[1].promised() > 30 })
	s := &kept{name: "s", of: h.line(), making: span{begin: h.now()}}
	h.kept = append(h.kept, s)
	if err := h.do(&s.making, "snapshot", "create", "vol", "--name", s.name); err != nil {
		t.Fatal(err)
	}
	o.disk.fail(writes, !writes)
	for _, w := range h.writers {
		<-w.ended // each ends at its first error
	}
	h.rest()
	if o.disk.failures() == 0 {
		t.Error("the writers ended, but no request of the disk failed")
	}
	if got := knock(); !strings.HasSuffix(got, "EIO") {
		t.Errorf("write and flush after a failure: %s, want the flush to fail", got)
	}
	readBroken(t, o)
	o.disk.fail(false, false)
	if got := knock(); !strings.HasSuffix(got, "EIO") {
		t.Errorf("write and flush after a failure, on a disk that is well again: %s, want the flush to fail", got)
	}
	o.disk.fail(writes, !writes)
	stopBroken(t, o)
	o.disk.detach()
	for _, l := range []loss{loseAll, loseNone, loseSome} {
		c := cut{at: o.disk.now(), loss: l, seed: [2]uint64{1, uint64(l)}}
		if err := o.check(c); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// readBroken reads volume and snapshot through new connections, from a disk that
// takes no writes.
func readBroken(t *testing.T, o *outage) {
	t.Helper()
	h := o.history
	forgetCache(t, filepath.Join(o.disk.path(), "volumes"))
	for range 3 {
		content, err := h.export(h.d, "vol")
		if err == nil {
			err = checkContent(h.line().ledgers, content, h.now())
		}
		for _, err := range []error{err, h.checkSnapshots(h.d, h.now())} {
			// XFS reads nothing any more once its log could not be written. Its
			// error, then, and not a refusal of ours.
			if err != nil && (o.disk.kind != "xfs" || !strings.Contains(err.Error(), "Input/output error")) {
				t.Errorf("on a disk that takes no writes: %v", err)
			}
		}
	}
}

// forgetCache lets the system write what is dirty in the files of a folder, which
// fails and gives up what could not be written, and forget the rest of it.
func forgetCache(t *testing.T, folder string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // XFS says nothing any more
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		f.Sync() // fails
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		t.Errorf("let the system forget %s: %v", folder, err)
	}
}

// stopBroken ends a daemon whose disk takes no writes: soon, and not without a
// word.
func stopBroken(t *testing.T, o *outage) {
	t.Helper()
	d := o.history.d
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hung := time.AfterFunc(patience, func() { d.cmd.Process.Signal(syscall.SIGQUIT) })
	err := d.cmd.Wait()
	if !hung.Stop() {
		t.Errorf("the daemon had not stopped after %v:\n%s", patience, d.logged())
	}
	d.cmd = nil
	if err == nil || !strings.Contains(d.logged(), "close volume") {
		t.Errorf("the daemon could not write everything, and stopped with %v and\n%s", err, d.logged())
	}
}

// startKnocker connects a client to the volume "vol". Each call of knock lets it
// write zeros where no writer writes, and flush, and returns both answers.
func startKnocker(t *testing.T, d *daemon) (knock func() string) {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "testdata/knock.py", d.uri("vol"), "24")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait() // how it ends is of no interest
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "connected" {
		t.Fatalf("knock.py said %q", lines.Text())
	}
	return func() string {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatalf("knock.py ended: %v", io.ErrUnexpectedEOF)
		}
		return lines.Text()
	}
}
