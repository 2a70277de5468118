package layers

import (
	"errors"
	"fmt"
)

// Errors that callers test for with errors.Is. Space that ran out is
// syscall.ENOSPC, a volume or boundary that is not there fs.ErrNotExist, one
// that is there already fs.ErrExist, a wrong argument fs.ErrInvalid.
var (
	ErrCorrupt     = errors.New("corrupt")                        // what is on disk is not what was written
	ErrClosed      = errors.New("closed")                         // the volume or view was closed
	ErrReadOnly    = errors.New("read-only until it is reopened") // the disk failed; see the cause beside it
	ErrUnsupported = errors.New("made by a newer program")        // a version, flag or shape that this one does not know
)

// A CorruptError says where something on disk is not what was written. It is
// ErrCorrupt to errors.Is.
type CorruptError struct {
	Path     string // the file
	Off      int64  // bytes from the start of the file
	Expected string
	Found    string
}

// Error names the file, the offset, and what stands there.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: corrupt at offset %d: expected %s, found %s", e.Path, e.Off, e.Expected, e.Found)
}

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// A LockedError says that another process, or another open in this one, has the
// volume.
type LockedError struct {
	Dir string // the volume's directory
	PID int    // the holder; 0 if it did not say
}

// Error names the volume and the holder.
func (e *LockedError) Error() string {
	return fmt.Sprintf("volume %s is open in process %d: close it there first", e.Dir, e.PID)
}
