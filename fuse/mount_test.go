package fuse

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests look into their mounts with other programs and with plain system
// calls, because of hazard 1 of the package.

// require skips the test if the machine lacks what it needs; with STRICT=1 that
// is a failure.
func require(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("STRICT") == "1" {
		t.Fatalf("this machine lacks %s", what)
	}
	t.Skipf("this machine lacks %s", what)
}

// requireMounts skips the test where it cannot mount as root.
func requireMounts(t *testing.T, programs ...string) {
	t.Helper()
	require(t, os.Geteuid() == 0, "root")
	_, err := os.Stat(fuseDevice)
	require(t, err == nil, fuseDevice)
	for _, name := range programs {
		_, err := exec.LookPath(name)
		require(t, err == nil, name)
	}
}

// A testMount is a mount of the test's own.
type testMount struct {
	*Server
	t   *testing.T
	log *logBuffer
}

// mountTest mounts s and unmounts it at the end of the test.
func mountTest(t *testing.T, s Source) *testMount {
	t.Helper()
	requireMounts(t)
	log := &logBuffer{}
	server, err := Mount(t.Context(), t.TempDir(), s, Options{
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(context.Background()); err != nil {
			t.Error(err)
		}
		server.Wait()
		if t.Failed() {
			t.Logf("log of the mount:\n%s", log)
		}
	})
	return &testMount{server, t, log}
}

// path joins names below the mount.
func (m *testMount) path(names ...string) string {
	return filepath.Join(append([]string{m.Dir()}, names...)...)
}

// open opens a file for reading and closes it at the end of the test.
func (m *testMount) open(names ...string) int {
	m.t.Helper()
	fd, err := openFile(m.path(names...), unix.O_RDONLY)
	if err != nil {
		m.t.Fatalf("open %s: %v", names, err)
	}
	m.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// close closes a file that open opened, before the end of the test.
func (m *testMount) close(fd int) {
	m.t.Helper()
	// The number stays in use until the end of the test, for its Cleanup.
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, fd, unix.O_CLOEXEC); err != nil {
		m.t.Fatal(err)
	}
}

func (m *testMount) stat(names ...string) unix.Stat_t {
	m.t.Helper()
	var st unix.Stat_t
	if err := again(func() error { return unix.Lstat(m.path(names...), &st) }); err != nil {
		m.t.Fatalf("stat %s: %v", names, err)
	}
	return st
}

// statErr returns the error of looking at a path, nil if it is there.
func (m *testMount) statErr(names ...string) error {
	var st unix.Stat_t
	return again(func() error { return unix.Lstat(m.path(names...), &st) })
}

// again makes a system call until no signal ends it. Go's runtime sends some to
// its own threads, and a mount whose answer is late then says EINTR.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func openFile(path string, flags int) (fd int, err error) {
	err = again(func() (err error) { fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0); return err })
	return fd, err
}

func pread(fd int, p []byte, off int64) (n int, err error) {
	err = again(func() (err error) { n, err = unix.Pread(fd, p, off); return err })
	return n, err
}

// patience bounds what a test waits for. Nothing is expected to take that long.
const patience = 5 * time.Minute

// until tries until ok says yes. The kernel tells nobody that it has forgotten
// a name, so there is nothing to wait for.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// run runs a program and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := runErr(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func runErr(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

var (
	noon  = time.Date(2026, 2, 26, 12, 0, 0, 123456789, time.UTC)
	early = time.Date(1965, 3, 1, 4, 5, 6, 0, time.UTC)
)

// I2: every snapshot and backup is a folder with its raw image in it, with the
// right size, time, mode and content, as foreign programs see it.
func TestTree(t *testing.T) {
	requireMounts(t, "find", "cmp", "cat")
	s := newMemSource()
	files := map[string]struct {
		data []byte
		time time.Time
	}{
		"web/monday":  {pattern(3<<20+17, 1), noon},
		"web/tuesday": {pattern(4096, 2), noon.Add(24 * time.Hour)},
		"db/now":      {pattern(1, 3), early},
	}
	for path, f := range files {
		volume, name, _ := strings.Cut(path, "/")
		s.add(volume, name, f.time, dense(f.data))
	}
	m := mountTest(t, s)

	got := strings.Split(strings.TrimSpace(run(t, "find", m.Dir(), "-mindepth", "1", "-printf", `%P %y %m %s %TF %TT\n`)), "\n")
	want := []string{
		"db d 555 0 1965-03-01 04:05:06.0000000000",
		"db/now d 555 0 1965-03-01 04:05:06.0000000000",
		"db/now/disk.raw f 444 1 1965-03-01 04:05:06.0000000000",
		"web d 555 0 2026-02-27 12:00:00.1234567890",
		"web/monday d 555 0 2026-02-26 12:00:00.1234567890",
		"web/monday/disk.raw f 444 3145745 2026-02-26 12:00:00.1234567890",
		"web/tuesday d 555 0 2026-02-27 12:00:00.1234567890",
		"web/tuesday/disk.raw f 444 4096 2026-02-27 12:00:00.1234567890",
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("find prints\n%s\nwant\n%s", g, w)
	}
	for path, f := range files {
		if got := run(t, "cat", m.path(path, "disk.raw")); got != string(f.data) {
			t.Errorf("cat %s: %d bytes that differ from the %d of the image", path, len(got), len(f.data))
		}
	}
	// 3145745, 4096 and 1 bytes are 769, 1 and 1 blocks.
	if got := run(t, "stat", "-f", "-c", "%s %l %b %f %c", m.Dir()); got != "4096 255 771 0 3\n" {
		t.Errorf("stat -f prints %q", got)
	}
	s.waitIdle(t)
}

// I2: sizes that are no multiple of a block or of a request.
func TestSizes(t *testing.T) {
	s := newMemSource()
	sizes := []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 4097}
	for i, size := range sizes {
		s.add("v", fmt.Sprint(size), noon, dense(pattern(size, byte(i))))
	}
	m := mountTest(t, s)
	for i, size := range sizes {
		name := fmt.Sprint(size)
		if st := m.stat("v", name, "disk.raw"); st.Size != int64(size) || st.Blocks > int64(size+511)/512 || size > 0 && st.Blocks == 0 {
			t.Errorf("size %d: stat says size %d, %d blocks", size, st.Size, st.Blocks)
		}
		fd, data := m.open("v", name, "disk.raw"), pattern(size, byte(i))
		got := make([]byte, size+10)
		if n := readAll(t, fd, got); n != size || !bytes.Equal(got[:n], data) {
			t.Errorf("size %d: read %d bytes, or other ones", size, n)
		}
		for _, off := range []int{size, size + 1, size + 1<<20} {
			if n, err := pread(fd, got, int64(off)); n != 0 || err != nil {
				t.Errorf("size %d: read past the end at %d: %d, %v", size, off, n, err)
			}
		}
		m.close(fd)
	}
	s.waitIdle(t)
}

// readAll reads from offset 0 on, and returns how many bytes there are.
func readAll(t *testing.T, fd int, p []byte) int {
	t.Helper()
	for total := 0; ; {
		n, err := pread(fd, p[total:], int64(total))
		if err != nil {
			t.Fatalf("read at %d: %v", total, err)
		}
		if total += n; n == 0 {
			return total
		}
	}
}

// I2: nothing in the mount can be changed.
func TestReadOnly(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(4096, 1)))
	m := mountTest(t, s)
	disk := m.path("v", "a", "disk.raw")
	for what, err := range map[string]error{
		"open for writing": func() error { _, err := unix.Open(disk, unix.O_RDWR, 0); return err }(),
		"truncate":         unix.Truncate(disk, 0),
		"unlink":           unix.Unlink(disk),
		"rmdir":            unix.Rmdir(m.path("v", "a")),
		"mkdir":            unix.Mkdir(m.path("new"), 0o777),
		"rename":           unix.Rename(disk, m.path("v", "a", "b")),
		"chmod":            unix.Chmod(disk, 0o777),
	} {
		if err != unix.EROFS {
			t.Errorf("%s: %v, want %v", what, err, unix.EROFS)
		}
	}
}

// Inode numbers belong to one image each and stay with it.
func TestInodeNumbers(t *testing.T) {
	s := newMemSource()
	for i := range 20 {
		s.add(fmt.Sprint("v", i%4), fmt.Sprint("image", i), noon, dense(pattern(100+i, byte(i))))
	}
	m := mountTest(t, s)
	walk := func() map[string]string {
		paths := map[string]string{}
		for line := range strings.Lines(run(t, "find", m.Dir(), "-printf", `%i %P\n`)) {
			ino, path, _ := strings.Cut(strings.TrimSpace(line), " ")
			if old, ok := paths[ino]; ok || ino == "0" {
				t.Errorf("inode %s is %q and %q", ino, old, path)
			}
			paths[ino] = path
		}
		return paths
	}
	before := walk()
	if len(before) != 1+4+20+20 {
		t.Errorf("%d inodes, want 45", len(before))
	}
	img := s.add("v9", "late", noon, dense(nil))
	until(t, "the new image appears", func() bool { return m.statErr("v9", "late") == nil })
	after := walk()
	for ino, path := range before {
		if after[ino] != path {
			t.Errorf("inode %s was %q, is now %q", ino, path, after[ino])
		}
	}
	s.remove(img.ID)
	until(t, "the image is gone", func() bool { return m.statErr("v9") == unix.ENOENT })
}
