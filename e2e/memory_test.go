package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// memoryMax is what a daemon may have resident while it makes or restores one
// backup, of a volume of any size: what it is at rest, three packs, and what
// the collector lets lie.
const memoryMax = 160 * MiB

// TestMemory holds the resident memory of the daemon, all it has mapped
// included, to what is promised. The data does not shrink, so every pack comes
// to its full size, and there are more of them than have room at a time.
func TestMemory(t *testing.T) {
	testbed.Require(t, "nbdcopy")
	t.Run("directory", func(t *testing.T) { testMemory(t, "file://"+t.TempDir()) })
	t.Run("s3", func(t *testing.T) {
		s := testbed.S3(t)
		testMemory(t, "s3://varve-e2e/memory?endpoint="+s.URL, words(s.Env())...)
	})
}

func testMemory(t *testing.T, target string, env ...string) {
	d := startDaemon(t, env...)
	image := filepath.Join(t.TempDir(), "image")
	randomImage(t, image, 320*MiB)
	d.varve("volume", "create", "vol", "--size", "320M")
	client(t, "nbdcopy", image, d.uri("vol"))
	d.varve("target", "add", "offsite", target)
	for _, act := range [][]string{
		{"backup", "create", "vol", "--name", "full"},
		{"backup", "restore", "full", "--name", "restored"},
	} {
		if err := os.WriteFile(d.proc("clear_refs"), []byte("5"), 0); err != nil { // proc_pid_clear_refs(5): the peak begins anew
			t.Fatal(err)
		}
		d.varve(act...)
		peak := d.peak()
		t.Logf("%s: at most %d MiB", strings.Join(act[:2], " "), peak/MiB)
		if peak > memoryMax {
			t.Errorf("%q took up to %d MiB of memory, %d are allowed", act, peak/MiB, memoryMax/MiB)
		}
	}
}

func (d *daemon) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), file)
}

// peak is the most memory that the daemon had resident, in bytes.
func (d *daemon) peak() int64 {
	d.t.Helper()
	status, err := os.ReadFile(d.proc("status"))
	if err != nil {
		d.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		d.t.Fatalf("VmHWM of the daemon: %v in\n%s", err, status)
	}
	return kib << 10
}
