package fuse

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
	"open-device":   helpOpenDevice,
	"mount-as-user": helpMountAsUser,
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

// helpOpenDevice makes a /dev/fuse that every user may open, in a mount
// namespace of its own, and runs mount-as-user as nobody.
func helpOpenDevice(args []string) error {
	scratch, dir := args[0], args[1]
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", scratch, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	var real unix.Stat_t
	if err := unix.Stat(fuseDevice, &real); err != nil {
		return err
	}
	device := filepath.Join(scratch, "fuse")
	if err := unix.Mknod(device, unix.S_IFCHR, int(real.Rdev)); err != nil {
		return err
	}
	if err := unix.Chmod(device, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(device, fuseDevice, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), helperEnv+"=mount-as-user")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd.Run()
}

// helpMountAsUser mounts, prints a file of the mount and who owns it, tries to
// mount again, and unmounts while a file is open.
func helpMountAsUser(args []string) error {
	ctx := context.Background()
	s := newMemSource()
	s.add("v", "a", noon, dense([]byte("hello")))
	server, err := Mount(ctx, args[0], s, Options{})
	if err != nil {
		return err
	}
	disk := filepath.Join(args[0], "v", "a", "disk.raw")
	out, err := exec.Command("cat", disk).CombinedOutput()
	fmt.Println(string(out), err)
	out, err = exec.Command("stat", "-c", "%u %g", disk).CombinedOutput()
	fmt.Println(strings.TrimSpace(string(out)), err)
	_, err = Mount(ctx, args[0], s, Options{})
	fmt.Println(err)
	fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := server.Unmount(ctx); err != nil {
		return err
	}
	unix.Close(fd)
	server.Wait()
	_, top, err := lookAt(args[0])
	fmt.Println("left:", top, err)
	return nil
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
