package repo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// A DamageError says which object is not what was written under its name, and
// where. It is ErrCorrupt, or ErrVersion if a newer program wrote it.
type DamageError struct {
	Object string
	Offset int64 // bytes from the start of the object
	Err    error // what was expected, what was found
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("object %s is damaged at offset %d: %v", e.Object, e.Offset, e.Err)
}

// Unwrap makes the error ErrCorrupt. A missing object is not fs.ErrNotExist:
// that means a backup which is not there, here one is there and not whole.
func (e *DamageError) Unwrap() []error {
	if errors.Is(e.Err, ErrVersion) {
		return []error{ErrVersion}
	}
	return []error{ErrCorrupt}
}

var errMissing = errors.New("the object is missing")

func damaged(object string, offset int64, err error) error {
	return &DamageError{Object: object, Offset: offset, Err: err}
}

// readError tells damage from a store that does not answer: n bytes of want
// came at offset of an object that something names.
func readError(object string, offset int64, n, want int, err error) error {
	switch {
	case n == want:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &DamageError{object, offset, errMissing}
	case err == io.EOF:
		return &DamageError{object, offset + int64(n), fmt.Errorf("the object ends here, expected %d more bytes", want-n)}
	case err == nil:
		return fmt.Errorf("read %d bytes at offset %d of %s: %w", want, offset, object, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read %d bytes at offset %d of %s: %w", want, offset, object, err)
}
