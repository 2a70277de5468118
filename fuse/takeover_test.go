package fuse

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary a program: see helpers.
const helperEnv = "VARVE_FUSE_HELPER"

// helpers are what the test binary does in place of its tests, with the
// arguments that follow.
var helpers = map[string]func(args []string) error{
	"serve":         helpServe,
	"mount-no-dev":  helpMountWithoutDevice,
	"mount-no-path": helpMountWithoutProgram,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper returns a command that runs a helper.
func helper(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// helpServe mounts v/a on a folder, starts a child that outlives it, and says so. It
// ends when its input does.
func helpServe(args []string) error {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(4096, 1)))
	server, err := Mount(context.Background(), args[0], s, Options{})
	if err != nil {
		return err
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println("mounted", child.Process.Pid)
	io.Copy(io.Discard, os.Stdin)
	child.Process.Kill()
	child.Wait()
	return server.Unmount(context.Background())
}

// helpMountWithoutDevice tries to mount where /dev is empty. It runs in a mount
// namespace of its own.
func helpMountWithoutDevice(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/dev", "tmpfs", 0, ""); err != nil {
		return err
	}
	_, err := Mount(context.Background(), args[0], newMemSource(), Options{})
	return err
}

// helpMountWithoutProgram tries to mount as a user who has no fusermount3.
func helpMountWithoutProgram(args []string) error {
	os.Setenv("PATH", "/nowhere")
	_, err := Mount(context.Background(), args[0], newMemSource(), Options{})
	return err
}

// serve runs helpServe until kill is called or the test ends.
func serve(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := helper(t, "serve", dir)
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
	line, err := bufio.NewReader(out).ReadString('\n')
	var child int
	if _, scanErr := fmt.Sscanf(line, "mounted %d", &child); scanErr != nil {
		t.Fatalf("the helper says %q (%v)", line, err)
	}
	killed := false
	t.Cleanup(func() {
		in.Close()
		if !killed {
			cmd.Wait()
		}
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	return func() {
		killed = true
		cmd.Process.Kill()
		cmd.Wait()
		t.Cleanup(func() { unix.Kill(child, unix.SIGKILL) })
	}
}

// A mount whose server was killed is taken over, although a child of that
// server lives on and somebody has a file open in it.
func TestTakeOver(t *testing.T) {
	requireMounts(t, "cat", "sleep")
	dir := t.TempDir()
	kill := serve(t, dir)
	disk := filepath.Join(dir, "v", "a", "disk.raw")
	fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	kill()
	if _, err := unix.Pread(fd, make([]byte, 10), 0); err != unix.ENOTCONN && err != unix.ECONNABORTED {
		t.Errorf("read from the dead mount: %v", err)
	}

	s := newMemSource()
	s.add("v", "b", noon, dense([]byte("hello")))
	log := &logBuffer{}
	server, err := Mount(t.Context(), dir, s, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, "cat", filepath.Join(dir, "v", "b", "disk.raw")); got != "hello" {
		t.Errorf("cat prints %q", got)
	}
	if !strings.Contains(log.String(), "cleared a mount") {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
	if err := server.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if _, top, err := lookAt(dir); top != nil || err != nil {
		t.Errorf("after unmounting: %+v, %v", top, err)
	}
}

// Mount refuses what it must not cover, and says what to do.
func TestRefusals(t *testing.T) {
	requireMounts(t)
	scratch := t.TempDir()
	folder := func(name string) string {
		path := filepath.Join(scratch, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := folder("full")
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := folder("foreign")
	if err := unix.Mount("none", foreign, "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(foreign, 0) })
	live, dead := folder("live"), folder("dead")
	serve(t, live)
	serve(t, dead)()
	link := filepath.Join(scratch, "link")
	if err := os.Symlink(live, link); err != nil {
		t.Fatal(err)
	}

	tests := []struct{ dir, says string }{
		{filepath.Join(scratch, "absent"), "mkdir -p"},
		{file, "not a directory: choose a folder"},
		{full, "not empty: choose an empty one"},
		{foreign, "tmpfs) is mounted there: unmount it, or choose another folder"},
		{live, "Varve has mounted there already: unmount that first: umount " + live},
		{link, "Varve has mounted there already: unmount that first: umount " + live},
		{filepath.Join(live, "v"), "not empty"},
		{filepath.Join(dead, "v"), "server has died; unmount that first"},
	}
	for _, test := range tests {
		server, err := Mount(t.Context(), test.dir, newMemSource(), Options{})
		if err == nil {
			server.Unmount(t.Context())
			t.Errorf("mount %s: no error, want one that says %q", test.dir, test.says)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || !strings.HasPrefix(err.Error(), "mount "+test.dir) {
			t.Errorf("mount %s: %q, want one that says %q", test.dir, err, test.says)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Mount(ended, folder("ended"), newMemSource(), Options{}); err == nil {
		t.Error("mount with an ended context: no error")
	}
}

// Without /dev/fuse, or without fusermount3 for a user who is not root, the
// error says so.
func TestMissingTools(t *testing.T) {
	requireMounts(t)
	dir := t.TempDir()
	noDevice := helper(t, "mount-no-dev", dir)
	noDevice.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, _ := noDevice.Output()
	if got := string(out); !strings.Contains(got, "/dev/fuse: no such file") || !strings.Contains(got, "modprobe fuse") {
		t.Errorf("without /dev/fuse: %q", got)
	}

	noProgram := helper(t, "mount-no-path", "/work-dir")
	noProgram.Args[1] = publicDir(t)
	noProgram.Path = publicBinary(t)
	noProgram.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := noProgram.Output()
	if got := string(out); !strings.Contains(got, "fusermount3") || !strings.Contains(got, "install the package fuse3") {
		t.Errorf("without fusermount3: %q (%v)", got, err)
	}
}

// publicDir returns a folder that the user nobody owns and can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "varve-fuse")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	return dir
}

// publicBinary returns a copy of the test binary that everybody can run.
func publicBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(publicDir(t), "varve-fuse.test")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A user who is not root mounts with fusermount3. As root here: it is the same
// code, and needs no rights for /dev/fuse.
func TestMountWithHelper(t *testing.T) {
	requireMounts(t, helperName, "cat")
	dir := t.TempDir()
	fd, err := attachHelped(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	s := newMemSource()
	s.add("v", "a", noon, dense([]byte("hello")))
	base, cancel := context.WithCancel(t.Context())
	server := &Server{dir: dir, log: slog.Default(), cancel: cancel, done: make(chan struct{})}
	if err := server.start(fd, newFilesystem(base, s, server.log)); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "cat", filepath.Join(dir, "v", "a", "disk.raw")); got != "hello" {
		t.Errorf("cat prints %q", got)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor is left to child processes (%v)", err)
	}
	run(t, helperName, "-u", dir)
	server.Wait()

	if err := runHelper(exec.Command(helperName, "-u", "--", dir)); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("unmounting what is not mounted: %v, want what fusermount3 says", err)
	}
}

// Wait returns when somebody else unmounts.
func TestUnmountByOthers(t *testing.T) {
	requireMounts(t, "umount")
	m := mountTest(t, newMemSource())
	run(t, "umount", m.Dir())
	m.Wait()
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmounting it again: %v", err)
	}
}

// The end of the context unmounts.
func TestUnmountAtEndOfContext(t *testing.T) {
	requireMounts(t)
	ctx, cancel := context.WithCancel(t.Context())
	server, err := Mount(ctx, t.TempDir(), newMemSource(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	server.Wait()
	if _, top, err := lookAt(server.Dir()); top != nil || err != nil {
		t.Errorf("after the end of the context: %+v, %v", top, err)
	}
}

// Unmount frees the folder although a file is open; the file stays readable,
// and Wait returns when it is closed.
func TestUnmountInUse(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(1<<20, 1)))
	m := mountTest(t, s)
	fd := m.open("v", "a", "disk.raw")
	if err := m.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, top, err := lookAt(m.Dir()); top != nil || err != nil {
		t.Errorf("after unmounting: %+v, %v", top, err)
	}
	got := make([]byte, 2<<20)
	if n := readAll(t, fd, got); n != 1<<20 {
		t.Errorf("read %d bytes of the open file", n)
	}
	select {
	case <-m.done:
		t.Error("Wait returns while a file is open")
	default:
	}
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmounting it again: %v", err)
	}
	m.close(fd)
	m.Wait()
	s.waitIdle(t)
}

// Unmount leaves alone what somebody has mounted on top, or in its place.
func TestUnmountBelowAnother(t *testing.T) {
	m := mountTest(t, newMemSource())
	if err := unix.Mount("none", m.Dir(), "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	err := m.Unmount(t.Context())
	if err == nil || !strings.Contains(err.Error(), "tmpfs) is mounted on top of it") {
		t.Errorf("unmount below another mount: %v", err)
	}
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Error(err)
	}
}

// A connection that is aborted closes the images that were open.
func TestAbort(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(1<<20, 1)))
	m := mountTest(t, s)
	fd := m.open("v", "a", "disk.raw")
	_, minor, _ := strings.Cut(m.mount.dev, ":")
	connections := "/sys/fs/fuse/connections"
	if _, err := os.Stat(filepath.Join(connections, minor)); err != nil {
		if err := unix.Mount("none", connections, "fusectl", 0, ""); err != nil {
			t.Fatalf("mount fusectl: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(connections, 0) })
	}
	if err := os.WriteFile(filepath.Join(connections, minor, "abort"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	s.waitIdle(t)
	if _, err := unix.Pread(fd, make([]byte, 10), 0); err == nil {
		t.Error("the aborted mount still reads")
	}
	// What it leaves is stale, and taken over.
	again, err := Mount(context.Background(), m.Dir(), s, Options{Log: m.Server.log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := again.Unmount(ctx); err != nil {
		t.Error(err)
	}
	again.Wait()
}
