package fuse

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount whose server was killed is taken over, although a child of that
// server lives on and somebody has a file open in it.
func TestTakeOver(t *testing.T) {
	requireMounts(t, "cat", "sleep")
	dir := t.TempDir()
	kill := serve(t, dir)
	disk := filepath.Join(dir, "v", "a", "disk.raw")
	fd, err := openFile(disk, unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	kill()
	if _, err := pread(fd, make([]byte, 10), 0); err != unix.ENOTCONN && err != unix.ECONNABORTED {
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

// Unmount frees a folder of another process, dead or alive, and nothing else.
func TestUnmountOfAnother(t *testing.T) {
	requireMounts(t)
	live, dead, foreign := t.TempDir(), t.TempDir(), t.TempDir()
	serve(t, live)
	serve(t, dead)()
	if err := unix.Mount("none", foreign, "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(foreign, 0) })
	fd, err := openFile(filepath.Join(live, "v", "a", "disk.raw"), unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{live, dead} {
		if err := Unmount(t.Context(), dir); err != nil {
			t.Error(err)
		}
		if _, top, err := lookAt(dir); top != nil || err != nil {
			t.Errorf("after unmounting: %+v, %v", top, err)
		}
	}
	if n, err := pread(fd, make([]byte, 4096), 0); n != 4096 || err != nil {
		t.Errorf("a file that was open: %d bytes, %v", n, err)
	}
	unix.Close(fd)
	for _, dir := range []string{live, foreign} {
		if err := Unmount(t.Context(), dir); !errors.Is(err, ErrNotMounted) {
			t.Errorf("unmount %s: %v, want %v", dir, err, ErrNotMounted)
		}
	}
	if err := Unmount(t.Context(), filepath.Join(live, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unmount a folder that is not there: %v", err)
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

	noProgram := helper(t, "mount-no-path", publicDir(t))
	noProgram.Path = publicBinary(t)
	noProgram.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := noProgram.Output()
	if got := string(out); !strings.Contains(got, "fusermount3") || !strings.Contains(got, "install the package fuse3") {
		t.Errorf("without fusermount3: %q (%v)", got, err)
	}
}

// A user who is not root mounts, and unmounts, with fusermount3.
func TestMountAsUser(t *testing.T) {
	requireMounts(t, helperName, "cat", "stat")
	dir := publicDir(t)
	cmd := helper(t, "open-device", t.TempDir(), dir)
	cmd.Path = publicBinary(t)
	cmd.Args[0] = cmd.Path
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("the helper: %v", err)
	}
	want := "hello <nil>\n65534 65534 <nil>\n" +
		"mount " + dir + ": Varve has mounted there already: unmount that first: fusermount3 -u " + dir + "\n" +
		"left: <nil> <nil>\n"
	if string(out) != want {
		t.Errorf("the helper prints\n%swant\n%s", out, want)
	}
}

// What fusermount3 complains of becomes the error.
func TestHelperComplains(t *testing.T) {
	requireMounts(t, helperName)
	dir := t.TempDir()
	err := runHelper(exec.Command(helperName, "-u", "--", dir))
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("unmounting what is not mounted: %v", err)
	}
}
