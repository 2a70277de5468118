package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A rawDevice is a file or block device that is served for writing. It never
// grows, and while it is served nobody else who asks for a lock can have it.
type rawDevice struct {
	*rawFile
	failed atomic.Pointer[error] // why it takes no more writes
}

// openRawDevice opens a file or block device for reading and writing.
func openRawDevice(path string) (*rawDevice, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	raw, err := openRaw(f)
	if err == nil {
		err = lockFile(f, unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rawDevice{rawFile: raw}, nil
}

// lockFile takes a lock of flock(2) that ends with the file's descriptor.
func lockFile(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use: another process holds a lock on it", f.Name())
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

func (d *rawDevice) writable(act string, off, n int64) error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if off < 0 || n < 0 || off > d.size-n {
		return fmt.Errorf("%s %s [%d, +%d): beyond the size %d: %w", act, d.Name(), off, n, d.size, fs.ErrInvalid)
	}
	return nil
}

// WriteAt writes p at off, or nothing if it does not fit.
func (d *rawDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.writable("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.File.WriteAt(p, off)
}

// zeroPiece is written where the file system has no other way to make zeros.
var zeroPiece [1 << 20]byte

// WriteZeroes punches a hole, or writes zeros where that is not possible.
func (d *rawDevice) WriteZeroes(off, n int64) error {
	if err := d.writable("zero", off, n); err != nil || n == 0 {
		return err
	}
	err := unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	for n > 0 {
		m, err := d.File.WriteAt(zeroPiece[:min(n, int64(len(zeroPiece)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

// Flush makes what was written durable. After a failure nothing is known about
// what is on the disk, and a second try would prove nothing.
func (d *rawDevice) Flush() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if err := unix.Fdatasync(int(d.Fd())); err != nil {
		err = fmt.Errorf("flush %s: %w; it takes no more writes", d.Name(), err)
		d.failed.CompareAndSwap(nil, &err)
		return err
	}
	return nil
}
