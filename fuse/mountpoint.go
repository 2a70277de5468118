package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fsType = "fuse.varve" // of every mount of this package, in mountinfo

	// maxStale is how many stale mounts on top of each other are cleared.
	maxStale = 16

	// probeTime is how long a mount has to show that its server lives.
	probeTime = 5 * time.Second
)

// A mount is a line of /proc/self/mountinfo: proc_pid_mountinfo(5).
type mount struct {
	id     int
	dev    string // "major:minor", which names the file system
	point  string // where it is mounted
	fsType string
	source string
}

// prepare makes sure that something can be mounted on dir, and returns the
// absolute path of dir without symbolic links. It clears away what a Varve that
// died has left there.
func prepare(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	for range maxStale {
		path, top, err := lookAt(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("%w: make the folder first: mkdir -p %s", err, dir)
		case errors.Is(err, unix.ENOTDIR):
			return "", fmt.Errorf("%w: choose a folder", err)
		case errors.Is(err, unix.ENOTCONN):
			return "", fmt.Errorf("%w: it lies inside a mount whose server has died; unmount that first: umount -l", err)
		case err != nil:
			return "", err
		}
		if top == nil {
			return path, checkEmpty(path)
		}
		if top.fsType != fsType {
			return "", fmt.Errorf("%s (%s) is mounted there: unmount it, or choose another folder", top.source, top.fsType)
		}
		if err := checkStale(path); err != nil {
			return "", err
		}
		if err := detach(ctx, path, true); err != nil {
			return "", fmt.Errorf("take over a stale mount: %w", err)
		}
		log.Info("cleared a mount whose server had died", "dir", path)
	}
	return "", fmt.Errorf("more than %d stale mounts lie there: unmount them: umount -l %s", maxStale, dir)
}

// lookAt returns the path of dir without symbolic links and the mount whose
// root it is; nil if it is an ordinary folder. It sends no request to a FUSE
// server, not even to that of the mount itself: one that hangs does no harm.
func lookAt(dir string) (string, *mount, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	defer unix.Close(fd)
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", nil, err
	}
	id, err := mountID(fd)
	if err != nil {
		return "", nil, err
	}
	all, err := mounts()
	if err != nil {
		return "", nil, err
	}
	for m := range all {
		if m.id == id && m.point == path {
			return path, &m, nil
		}
	}
	return path, nil, nil
}

// mountID returns the id of the mount that fd lies in: proc_pid_fdinfo(5).
func mountID(fd int) (int, error) {
	name := "/proc/self/fdinfo/" + strconv.Itoa(fd)
	info, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s: no mnt_id", name)
}

// mounts yields all mounts that this process sees.
func mounts() (iter.Seq[mount], error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return func(yield func(mount) bool) {
		for line := range bytes.Lines(info) {
			if m, ok := parseMount(string(line)); ok && !yield(m) {
				return
			}
		}
	}, nil
}

// parseMount reads a line of a mountinfo file:
//
//	36 35 98:0 /root /point rw,noatime shared:1 - type source options
//
// Any number of fields may stand before the dash.
func parseMount(line string) (mount, bool) {
	before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	left, right := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(left) < 6 || len(right) < 2 {
		return mount{}, false
	}
	id, err := strconv.Atoi(left[0])
	if err != nil {
		return mount{}, false
	}
	return mount{
		id:     id,
		dev:    left[2],
		point:  unescape(left[4]),
		fsType: unescape(right[0]),
		source: unescape(right[1]),
	}, true
}

// unescape replaces the octal codes (\040) of blanks and backslashes in a
// field of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// checkEmpty returns an error if the folder holds anything.
func checkEmpty(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	switch _, err := d.Readdirnames(1); {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return errors.New("the folder is not empty: choose an empty one")
}

// checkStale returns nil if the mount at path has lost its server. It asks with
// statfs(2), which the kernel never answers from a cache.
func checkStale(path string) error {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	timer := time.NewTimer(probeTime)
	defer timer.Stop()
	select {
	case err := <-answer:
		if err == unix.ENOTCONN || err == unix.ECONNABORTED {
			return nil
		}
		return fmt.Errorf("Varve has mounted there already: unmount that first: %s", unmountHint(path))
	case <-timer.C:
		return fmt.Errorf("Varve has mounted there already and does not answer: stop it, or unmount that first: umount -l %s", path)
	}
}
