package layers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const lockName = "lock"

// osDisk is a directory of the file system.
type osDisk struct{ dir string }

func (d osDisk) path(name string) string { return filepath.Join(d.dir, name) }

func (d osDisk) create(name string) (file, error) {
	return d.openFlags(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
}

func (d osDisk) open(name string) (file, error) { return d.openFlags(name, unix.O_RDWR) }

func (d osDisk) openFlags(name string, flags int) (file, error) {
	path := d.path(name)
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err == nil {
			return &osFile{fd: fd, path: path}, nil
		}
		if err != unix.EINTR {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func (d osDisk) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d osDisk) remove(name string) error     { return os.Remove(d.path(name)) }

// link gives the file a second name in into, which must be an osDisk.
func (d osDisk) link(name string, into disk) error {
	return os.Link(d.path(name), into.path(name))
}

// memory is the page cache: it has what a killed process wrote until the machine
// is started again or the file system's device is another one.
func (d osDisk) memory() string {
	var st unix.Stat_t
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || unix.Stat(d.dir, &st) != nil {
		return ""
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	sequence, _ := os.ReadFile("/sys/dev/block/" + device + "/diskseq") // not every file system has a device
	return fmt.Sprintf("%s %s %s", boot, device, sequence)
}

func (d osDisk) list() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (d osDisk) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: d.dir, Err: err}
	}
	return int64(st.Bavail) * st.Frsize, nil
}

func (d osDisk) syncDir() error { return syncPath(d.dir) }

// syncPath makes the entries of a directory durable.
func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing to lose
	return f.Sync()
}

// syncAll keeps several syncs under way: each waits for the drive to empty its
// cache, and one wait does for many.
func (d osDisk) syncAll(files []file) error {
	var group errgroup.Group
	group.SetLimit(16)
	for _, f := range files {
		group.Go(f.sync)
	}
	return group.Wait()
}

// lock takes the lock file, and leaves this process's id in it for whoever is
// refused.
func (d osDisk) lock() (func() error, error) {
	f, err := os.OpenFile(d.path(lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, &LockedError{Dir: d.dir, PID: readPID(f)}
		}
		return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	// The id is a courtesy: a full disk must not keep a volume shut.
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f.Close, nil
}

func readPID(r io.ReaderAt) int {
	var b [20]byte
	n, _ := r.ReadAt(b[:], 0) // whatever is there
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}

// osFile is an open file. It uses the descriptor directly: os.File would take a
// lock and, for a punch, has no call.
type osFile struct {
	fd   int
	path string
}

func (f *osFile) err(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.path, Err: err}
}

func (f *osFile) readAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, f.err("read", err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

func (f *osFile) writeAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(f.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return f.err("write", err)
		case n == 0:
			return f.err("write", io.ErrShortWrite)
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func (f *osFile) sync() error {
	for {
		err := unix.Fdatasync(f.fd)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return f.err("fdatasync", err)
		}
	}
}

// writeBack returns when what was dirty in the range has left the page cache. The
// kernel reports an error of writing to each descriptor once: here or at the next
// sync.
func (f *osFile) writeBack(off, n int64) error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for {
		err := unix.SyncFileRange(f.fd, off, n, flags)
		switch err {
		case nil, unix.EINVAL, unix.ENOSYS, unix.ESPIPE: // where there is no such call, sync does it all
			return nil
		case unix.EINTR:
		default:
			return f.err("sync_file_range", err)
		}
	}
}

// writeError waits for no writing: it looks at a range where nothing is, and the
// kernel answers for the whole file.
func (f *osFile) writeError() error {
	for {
		err := unix.SyncFileRange(f.fd, 1<<62, 1, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
		switch err {
		case nil, unix.EINVAL, unix.ENOSYS, unix.ESPIPE:
			return nil
		case unix.EINTR:
		default:
			return f.err("write back", err)
		}
	}
}

func (f *osFile) punch(off, n int64) error {
	for {
		err := unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case nil, unix.EOPNOTSUPP:
			// A file system without holes keeps the space: no reader looks there.
			return nil
		case unix.EINTR:
		default:
			return f.err("punch", err)
		}
	}
}

func (f *osFile) truncate(size int64) error {
	for {
		err := unix.Ftruncate(f.fd, size)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return f.err("truncate", err)
		}
	}
}

func (f *osFile) size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, f.err("stat", err)
	}
	return st.Size, nil
}

func (f *osFile) stat() (fileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return fileStat{}, f.err("stat", err)
	}
	return fileStat{names: int(st.Nlink), allocated: st.Blocks * 512}, nil
}

func (f *osFile) nextData(off int64) (int64, error) {
	next, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch err {
	case nil:
		return next, nil
	case unix.ENXIO:
		return -1, nil
	case unix.EINVAL: // no such call here: everything may be data
		size, err := f.size()
		if err != nil || off >= size {
			return -1, err
		}
		return off, nil
	}
	return 0, f.err("seek", err)
}

func (f *osFile) close() error {
	if err := unix.Close(f.fd); err != nil {
		return f.err("close", err)
	}
	return nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
