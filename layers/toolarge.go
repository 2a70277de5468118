package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"syscall"
)

// A TooLargeError says that a volume cannot have so many bytes. It is
// fs.ErrInvalid to errors.Is.
type TooLargeError struct {
	Size  int64  // bytes, that were asked for
	Limit int64  // bytes, that a volume can have
	Dir   string // the folder whose file system sets the limit; empty: it is MaxSize
}

// Error names the limit, where it comes from, and what to do.
func (e *TooLargeError) Error() string {
	if e.Dir == "" {
		return fmt.Sprintf("size %d: a volume can have %d bytes (16 TiB) at most", e.Size, e.Limit)
	}
	return fmt.Sprintf("size %d: a volume needs a file of its size, and the file system of %s holds files of at most %d bytes: "+
		"ask for no more, or have the state folder on a file system with larger files, such as XFS", e.Size, e.Dir, e.Limit)
}

// Is reports whether target is fs.ErrInvalid.
func (e *TooLargeError) Is(target error) bool { return target == fs.ErrInvalid }

// limitTemp is the file that the limit is tried with.
const limitTemp = "limit.tmp"

// setLength makes a data file as long as a layer of size bytes needs it. If the
// file system has no files of that length, it finds out which it has.
func setLength(d disk, f file, size int64) error {
	err := f.truncate(blocksOf(size) * BlockSize)
	if !errors.Is(err, syscall.EFBIG) {
		return err
	}
	limit, lerr := longestFile(d, blocksOf(size))
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	return &TooLargeError{Size: size, Limit: limit * BlockSize, Dir: d.path(".")}
}

// longestFile returns how many blocks the longest file has, which is less than
// end.
func longestFile(d disk, end int64) (blocks int64, err error) {
	f, err := d.create(limitTemp)
	if err != nil {
		return 0, err
	}
	defer d.remove(limitTemp) // what stays goes at the next open
	defer f.close()           // nothing is in it
	past := sort.Search(int(end), func(blocks int) bool { return f.truncate(int64(blocks)*BlockSize) != nil })
	return int64(past) - 1, nil
}
