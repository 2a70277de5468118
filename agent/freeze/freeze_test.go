package freeze

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/e2e/testbed"
)

// patience bounds what a test waits for. Nothing is expected to take that long.
const patience = 5 * time.Minute

// The test's own binary is the helper, and a parent that can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "helper":
			os.Exit(Main(os.Args[2:], os.Stdin, os.Stdout))
		case "parent":
			os.Exit(parent(os.Args[2]))
		case "prattles":
			fmt.Println("no json")
			os.Exit(0)
		case "dies":
			os.Exit(1)
		}
	}
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // The helpers need not linger.
	os.Exit(m.Run())
}

var self = []string{"helper"}

// parent freezes a file system, says so and waits for its death.
func parent(point string) int {
	h, err := Begin(context.Background(), self, []string{point}, nil, time.Hour)
	if err == nil {
		err = h.Freeze(context.Background())
	}
	fmt.Println("frozen", err)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// newFS mounts a fresh ext4 on a loop device.
func newFS(t *testing.T) string {
	t.Helper()
	needs(t, "mkfs.ext4", "losetup", "mount")
	dir := t.TempDir()
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	run(t, "truncate", "-s", "16M", image)
	run(t, "mkfs.ext4", "-q", image)
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", image, point)
	t.Cleanup(func() {
		if d, err := os.Open(point); err == nil { // A test that failed may leave it frozen.
			unix.IoctlSetInt(int(d.Fd()), fiThaw, 0)
			d.Close()
		}
		unmount(t, point)
	})
	return point
}

// unmount unmounts as soon as nobody has it open any more: a helper whose
// parent was killed ends a little after it has thawed.
func unmount(t *testing.T, point string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := unix.Unmount(point, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			t.Fatalf("unmount %s: %v", point, err)
		}
	}
}

func needs(t *testing.T, tools ...string) {
	t.Helper()
	testbed.RequireRoot(t)
	testbed.Require(t, tools...)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// frozen asks the kernel whether a file system is frozen.
func frozen(t *testing.T, point string) bool {
	t.Helper()
	d, err := os.Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = unix.IoctlSetInt(int(d.Fd()), fiFreeze, 0)
	if err == nil {
		err = unix.IoctlSetInt(int(d.Fd()), fiThaw, 0)
	} else if errors.Is(err, unix.EBUSY) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// writer writes a file and reports when that is through.
func writer(point string) <-chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(point, "file"), []byte("x"), 0o600) }()
	return done
}

func awaitWriter(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the writer still waits")
	}
}

func begin(t *testing.T, limit time.Duration, points ...string) *Hold {
	t.Helper()
	h, err := Begin(t.Context(), self, points, []string{os.TempDir()}, limit)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// S2: two file systems are frozen from Freeze to Thaw, and not before or after.
func TestFreeze(t *testing.T) {
	one, two := newFS(t), newFS(t)
	h := begin(t, patience, one, two)
	if frozen(t, one) || frozen(t, two) {
		t.Error("frozen before Freeze")
	}
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !frozen(t, one) || !frozen(t, two) {
		t.Error("not frozen after Freeze")
	}
	done := writer(one)
	if r := h.Thaw(); r.State != Frozen || len(r.Notes) != 0 {
		t.Errorf("report %+v, want frozen", r)
	}
	awaitWriter(t, done)
	if frozen(t, one) || frozen(t, two) {
		t.Error("frozen after Thaw")
	}
}

// S2: a freeze never outlasts its limit, whoever forgets to thaw.
func TestFreezeEndsAtItsLimit(t *testing.T) {
	point := newFS(t)
	limit := 50 * time.Millisecond
	h := begin(t, limit, point)
	for h.Freeze(t.Context()) != nil { // A busy machine may take longer for the freeze alone.
		h.Thaw()
		if limit *= 4; limit > patience {
			t.Fatal("it cannot be frozen")
		}
		h = begin(t, limit, point)
	}
	awaitWriter(t, writer(point)) // Nobody thaws but the helper.
	if r := h.Thaw(); r.State != Synced || !strings.Contains(strings.Join(r.Notes, ""), "at its limit of "+limit.String()) {
		t.Errorf("report %+v, want synced and why", r)
	}
}

// A hold that is given up before Freeze leaves nothing frozen.
func TestThawWithoutFreeze(t *testing.T) {
	point := newFS(t)
	h := begin(t, patience, point)
	h.Thaw()
	if frozen(t, point) {
		t.Error("frozen")
	}
}

// S2: a parent that is killed leaves nothing frozen.
func TestParentIsKilled(t *testing.T) {
	point := newFS(t)
	cmd := exec.Command("/proc/self/exe", "parent", point)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "frozen <nil>\n" || err != nil || !frozen(t, point) {
		t.Errorf("the parent says %q, %v", line, err)
	}
	cmd.Process.Kill()
	awaitWriter(t, writer(point))
	cmd.Wait() // It was killed.
}

// S2: nor does a helper that is killed.
func TestHelperIsKilled(t *testing.T) {
	point := newFS(t)
	h := begin(t, patience, point)
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.child.Process.Kill()
	if r := h.Thaw(); r.State != Synced || !strings.Contains(strings.Join(r.Notes, ""), "ended early") {
		t.Errorf("report %+v, want synced and why", r)
	}
	awaitWriter(t, writer(point))
}

// What a crash of both left is thawed by its mount point.
func TestThawOfWhatWasLeft(t *testing.T) {
	point := newFS(t)
	run(t, "fsfreeze", "-f", point)
	for range 2 { // The second finds nothing to do.
		if err := Thaw(point); err != nil {
			t.Error(err)
		}
		awaitWriter(t, writer(point))
	}
}

// What somebody else froze is frozen, and stays so.
func TestFrozenBySomebodyElse(t *testing.T) {
	point := newFS(t)
	h := begin(t, patience, point)
	run(t, "fsfreeze", "-f", point)
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := h.Thaw(); r.State != Frozen {
		t.Errorf("report %+v, want frozen", r)
	}
	if !frozen(t, point) {
		t.Error("thawed what it did not freeze")
	}
	run(t, "fsfreeze", "-u", point)
}

// S2: what cannot be frozen is synced.
func TestCannotBeFrozen(t *testing.T) {
	needs(t, "mount")
	point := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=1M", "varve-test", point)
	t.Cleanup(func() { run(t, "umount", point) })
	h := begin(t, patience, point)
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := h.Thaw()
	if r.State != Synced || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], point+" cannot be frozen") {
		t.Errorf("report %+v, want synced and why", r)
	}
}

func TestPointsThatAreRefused(t *testing.T) {
	point := newFS(t)
	inside := filepath.Join(point, "state")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, avoid, want string }{
		{"relative", "/proc", "not an absolute path"},
		{"/nowhere/at/all", "/proc", "no such file"},
		{inside, "/proc", "nothing is mounted there; it lies in what is mounted at " + point},
		{point, inside, "is in that file system"},
		{point, filepath.Join(point, "gone"), "no such file"},
	} {
		if err := Check(tt.path, []string{tt.avoid}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s without %s: %v, want %q", tt.path, tt.avoid, err, tt.want)
		}
	}
	if err := Check(point, []string{"/proc"}); err != nil {
		t.Error(err)
	}
}

func TestHelperThatIsNone(t *testing.T) {
	point := newFS(t)
	for _, helper := range [][]string{{"dies"}, {"prattles"}} {
		if _, err := Begin(t.Context(), helper, []string{point}, nil, patience); err == nil {
			t.Errorf("helper %v: no error", helper)
		}
	}
	if Main([]string{"soon", "x"}, nil, nil) != 2 || Main(nil, nil, nil) != 2 {
		t.Error("wrong arguments are taken")
	}
}

func TestParseMount(t *testing.T) {
	for line, want := range map[string]mount{
		`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: {"98:0", "/mnt1", "/mnt2", "ext3", "/dev/root"},
		`45 27 7:0 / /a\040b\134c rw - ext4 /dev/loop0 rw`:                               {"7:0", "/", `/a b\c`, "ext4", "/dev/loop0"},
		`45 27 7:0 / /x rw shared:1 master:2 propagate_from:3 - btrfs /dev/nbd0 rw`:      {"7:0", "/", "/x", "btrfs", "/dev/nbd0"},
		``:                              {},
		`45 27 7:0 / /x`:                {},
		`45 27 7:0 / - ext4 /dev/loop0`: {},
		` - `:                           {},
	} {
		got, ok := parseMount(line)
		if got != want || ok != (want != mount{}) {
			t.Errorf("%q: %+v, %v, want %+v", line, got, ok, want)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`)
	f.Add(`45 27 7:0 / /a\040b\13 rw - ext4 /dev/loop0 rw`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMount(line); ok && (m.point == "" || m.dev == "") {
			t.Errorf("%q: %+v", line, m)
		}
	})
}

// Mounts finds what lies on an nbd device, by its server's process or name, on
// its partitions, and on what is stacked on these; and on a loop device over a
// FUSE mount. A host of folders stands for /sys and /proc.
func TestMounts(t *testing.T) {
	dir := t.TempDir()
	h := Host{Sys: filepath.Join(dir, "sys"), Proc: filepath.Join(dir, "proc")}
	file := func(path, text string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, number := range map[string]string{
		"nbd0": "43:0", "nbd1": "43:32", "nbd1p1": "43:33", "nbd1p2": "43:34", "nbd2": "43:64", "dm-0": "253:0", "dm-1": "253:1",
		"loop0": "7:0", "loop1": "7:1", "loop2": "7:2", "sda": "8:0",
	} {
		file("sys/class/block/"+name+"/dev", number+"\n")
		if !strings.Contains(name[1:], "p1") && !strings.Contains(name, "p2") {
			file("sys/block/"+name+"/size", "1\n")
		}
	}
	file("sys/block/nbd0/pid", "100\n")
	file("sys/block/nbd1/pid", "7\n")
	file("sys/block/nbd1/backend", "varve-0192-abc\n")
	file("sys/block/nbd2/pid", "8\n")
	file("sys/class/block/nbd1/nbd1p1/partition", "1\n")
	file("sys/class/block/nbd1/nbd1p2/partition", "2\n")
	file("sys/class/block/nbd1p2/holders/dm-0", "")
	file("sys/class/block/dm-0/holders/dm-1", "")
	file("sys/block/loop0/loop/backing_file", "/fuse a/nbd\n")
	file("sys/block/loop1/loop/backing_file", "/fuse a/b/nbd\n")
	file("sys/block/loop2/loop/backing_file", "/fuse c/nbd\n")
	file("proc/200/fdinfo/5", "pos:\t0\nfuse_connection:\t39\n")
	file("proc/300/fdinfo/5", "pos:\t0\n")
	file("proc/300/cmdline", "nbdfuse\x00fuse c\x00nbd://x\x00")
	if err := os.Symlink("/", filepath.Join(dir, "proc/300/cwd")); err != nil {
		t.Fatal(err)
	}
	file("proc/self/mountinfo", `21 20 8:0 / / rw - ext4 /dev/sda rw
30 21 0:39 / /fuse\040a rw - fuse /dev/fuse rw
31 30 0:40 / /fuse\040a/b rw - fuse /dev/fuse rw
32 21 0:41 / /fuse\040c rw - fuse.nbdfuse nbdfuse rw
40 21 43:0 / /nbd0 rw - ext4 /dev/nbd0 rw
41 21 43:0 /sub /bind rw - ext4 /dev/nbd0 rw
42 21 43:33 / /part rw - xfs /dev/nbd1p1 rw
43 21 253:1 / /crypt rw - ext4 /dev/mapper/crypt rw
44 21 7:0 / /loop0 rw - ext4 /dev/loop0 rw
45 21 7:1 / /loop1 rw - ext4 /dev/loop1 rw
46 21 7:2 / /loop2 rw - ext4 /dev/loop2 rw
47 21 43:64 / /hidden rw - ext4 /dev/nbd2 rw
48 21 8:0 /x /hidden rw - ext4 /dev/sda rw
49 21 43:64 / /seen rw - ext4 /dev/nbd2 rw
`)
	for _, tt := range []struct {
		client Client
		want   []string
	}{
		{Client{PID: 100}, []string{"/nbd0"}},
		{Client{Backend: "0192-abc"}, []string{"/part", "/crypt"}},
		{Client{PID: 200}, []string{"/loop0"}},
		{Client{PID: 300}, []string{"/loop2"}},
		{Client{PID: 8}, []string{"/seen"}},
		{Client{PID: 1}, nil},
		{Client{}, nil},
	} {
		if got := h.Mounts(tt.client); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.client, got, tt.want)
		}
	}
	if got := (Host{Sys: dir, Proc: filepath.Join(dir, "none")}).Mounts(Client{PID: 1}); got != nil {
		t.Errorf("without /proc: %q", got)
	}
}
