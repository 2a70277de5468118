package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	fuseDevice = "/dev/fuse"
	helperName = "fusermount3" // mounts and unmounts for users who are not root
)

// attach mounts on path and returns the descriptor of /dev/fuse that serves
// it, close-on-exec: see hazard 3 of the package. Root mounts by itself, others
// with fusermount3.
func attach(path string, allowOther bool) (int, error) {
	if _, err := os.Stat(fuseDevice); err != nil {
		return -1, fmt.Errorf("this kernel or container has no FUSE: %w: run modprobe fuse, or give the container %s", err, fuseDevice)
	}
	if os.Geteuid() == 0 {
		return attachDirect(path, allowOther)
	}
	return attachHelped(path, allowOther)
}

// mountOptions are the options that both ways share: mount.fuse3(8).
func mountOptions(allowOther bool) string {
	options := fmt.Sprintf("max_read=%d", maxRequest)
	if allowOther {
		// Without default_permissions the kernel would not look at modes.
		options += ",allow_other,default_permissions"
	}
	return options
}

// attachDirect mounts with mount(2).
func attachDirect(path string, allowOther bool) (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w: the device must be allowed here", fuseDevice, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,%s",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), mountOptions(allowOther))
	err = unix.Mount("varve", path, fsType, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, options)
	if err != nil {
		unix.Close(fd)
		if err == unix.EPERM {
			return -1, fmt.Errorf("mount(2): %w: root here lacks the capability CAP_SYS_ADMIN", err)
		}
		return -1, fmt.Errorf("mount(2): %w", err)
	}
	return fd, nil
}

// attachHelped mounts with fusermount3, which sends the descriptor back
// through a socket.
func attachHelped(path string, allowOther bool) (int, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "socket"), os.NewFile(uintptr(ends[1]), "socket")
	defer ours.Close()
	defer theirs.Close()

	options := "ro,nosuid,nodev,fsname=varve,subtype=varve," + mountOptions(allowOther)
	cmd := exec.Command(helperName, "-o", options, "--", path)
	cmd.ExtraFiles = []*os.File{theirs} // becomes descriptor 3
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	if err := runHelper(cmd); err != nil {
		if unix.Access(fuseDevice, unix.R_OK|unix.W_OK) != nil {
			return -1, fmt.Errorf("%w: allow this user to open it: chmod 666 %s", err, fuseDevice)
		}
		return -1, err
	}
	return receiveFD(ends[0])
}

// receiveFD returns the one descriptor that comes through a socket.
func receiveFD(socket int) (int, error) {
	data, control := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, data, control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, fmt.Errorf("%s sent no descriptor: %w", helperName, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", helperName)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", helperName)
	}
	return fds[0], nil
}

// detach unmounts what lies on top at path. A lazy unmount succeeds although
// files are open: the path is free at once, the files stay readable.
func detach(ctx context.Context, path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		if err := unix.Unmount(path, flags); err != nil {
			return fmt.Errorf("umount(2) %s: %w", path, err)
		}
		return nil
	}
	args := []string{"-u", "--", path}
	if lazy {
		args = []string{"-u", "-z", "--", path}
	}
	return runHelper(exec.CommandContext(ctx, helperName, args...))
}

// runHelper runs fusermount3. What it complains of becomes the error.
func runHelper(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	switch said := strings.TrimSpace(stderr.String()); {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: install the package fuse3, or run as root", err)
	case said != "":
		return fmt.Errorf("%w: %s", err, said)
	}
	return fmt.Errorf("%s: %w", helperName, err)
}

// unmountHint is the command that unmounts path.
func unmountHint(path string) string {
	if os.Geteuid() == 0 {
		return "umount " + path
	}
	return helperName + " -u " + path
}
