package catalog

import (
	"errors"
	"fmt"
	"sync"
)

// ErrReadOnly says that the disk refused a change: the catalog can be read, and
// takes no changes until it is opened again.
var ErrReadOnly = errors.New("the catalog takes no changes until the daemon is started again")

// A failure remembers that the disk failed. What is on it is not known from then
// on: the kernel may have dropped what it could not write, and the next sync
// would succeed and prove nothing, with a hole in the log before what it says is
// safe. And where a file system has given up, Badger's next write through its
// memory map is a bus error. So nothing is written any more. What was
// acknowledged before is in the log, and the next Open finds it.
type failure struct {
	once  sync.Once
	cause error
	told  chan struct{} // closed once cause is there
}

func newFailure() *failure { return &failure{told: make(chan struct{})} }

// because takes the first reason and returns it as ErrReadOnly.
func (f *failure) because(cause error) error {
	f.once.Do(func() {
		f.cause = fmt.Errorf("%w: %w", ErrReadOnly, cause)
		close(f.told)
	})
	return f.err()
}

// err returns ErrReadOnly with its cause; nil if the disk has not failed.
func (f *failure) err() error {
	select {
	case <-f.told:
		return f.cause
	default:
		return nil
	}
}

// closeDB closes the database, unless the disk has failed or fails now: Badger
// would try to write its last table for ever. Its lock is held then until the
// process ends.
func (c *Catalog) closeDB() error {
	if err := c.failure.err(); err != nil {
		return err
	}
	closed := make(chan error, 1)
	go func() { closed <- c.db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-c.failure.told:
		return c.failure.err()
	}
}
