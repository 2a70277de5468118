// Package catalog remembers what exists and what happened: volumes, snapshots,
// backups, targets and operations.
//
// It holds names, history and copies for listing. What is needed to read data
// is in the data's own files, so a lost catalog loses names and no data; about
// backups the target is the truth. Nothing on the data path waits for it.
//
// # Use
//
//	c, err := catalog.Open(dir, log)
//	err = c.Update(func(tx *catalog.Tx) error {
//		v, err := catalog.Volumes.Get(tx, id)
//		if err != nil {
//			return err
//		}
//		v.Status = catalog.InUse
//		return catalog.Volumes.Put(tx, v)
//	})
//
// # What holds
//
// A transaction is whole or not at all, and durable when Update has returned.
// Transactions that meet are serialised: the later one is run again, so the
// function given to Update has no effects besides those on tx. All methods are
// safe for concurrent use; a Tx belongs to its function.
//
// One process at a time has a catalog open; see ErrLocked. A record that cannot
// be decoded is reported by itself and hides no other; see RecordError.
//
// # Keys
//
//	format              the format's version, decimal
//	fresh               there if it was made and nobody has said Settle
//	<table>/<id>        a record as JSON; the id in its text form, so records sort by age
//	quota               a record that there is one of, as JSON
//	reading/<target>/<object>   milliseconds since 1970, decimal: see Readings
package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Version is the format that this package writes. A catalog with a higher one
// is not opened.
const Version = 1

// MaxRecord is the most bytes that a record may take. It keeps every record in
// Badger's tables and out of its value log, which then needs no collection.
const MaxRecord = 32 << 10

// maxAttempts bounds how often a transaction that meets others is run beside
// them. After that it has its turn alone.
const maxAttempts = 10

var (
	// ErrLocked says that another process has the catalog open.
	ErrLocked = errors.New("another process has it open: is the daemon running already?")

	// ErrVersion says that a newer Varve wrote the catalog.
	ErrVersion = errors.New("written by a newer version of varve: use that one")

	// ErrClosed says that the catalog was closed.
	ErrClosed = errors.New("the catalog is closed")
)

var (
	formatKey = []byte("format")
	freshKey  = []byte("fresh")
)

// A Catalog is an open database. Close it.
type Catalog struct {
	db      *badger.DB
	space   *space
	failure *failure

	// changes is held shared by changes, which may meet, and for itself by one
	// that has met others too often.
	changes sync.RWMutex
}

// Open opens the catalog in dir and makes it, readable for its owner only, if
// it is not there. The error wraps ErrLocked or ErrVersion where these are the
// reason. log may be nil.
func Open(dir string, log *slog.Logger) (*Catalog, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	space := &space{dir: dir, log: log}
	if err := space.release(); err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	if err := checkTables(dir); err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	failure := newFailure()
	db, err := badger.Open(tuned(dir, logger{log, failure}))
	if err != nil {
		if strings.Contains(err.Error(), "Cannot acquire directory lock") { // Badger has no value for it.
			err = ErrLocked
		}
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	c := &Catalog{db: db, space: space, failure: failure}
	if err := errors.Join(c.checkFormat(), space.take()); err != nil {
		c.closeDB() // Nothing was written; the first error says more.
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	return c, nil
}

// tuned makes Badger small: its defaults are for gigabytes, a catalog has some
// thousand records of some hundred bytes.
func tuned(dir string, log logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(log).
		WithSyncWrites(true).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(6).
		WithValueLogFileSize(16 << 20).
		WithValueThreshold(2 * MaxRecord).
		WithCompression(options.None).
		WithBlockCacheSize(0). // Right only without compression.
		WithChecksumVerificationMode(options.OnTableAndBlockRead).
		WithCompactL0OnClose(true).
		WithMetricsEnabled(false)
}

// checkFormat writes the version into a new catalog and compares it in an old
// one.
func (c *Catalog) checkFormat() error {
	return c.Update(func(tx *Tx) error {
		text, err := tx.get(formatKey)
		if errors.Is(err, fs.ErrNotExist) {
			return errors.Join(tx.put(formatKey, []byte(strconv.Itoa(Version))), tx.put(freshKey, nil))
		}
		if err != nil {
			return err
		}
		switch version, err := strconv.Atoi(string(text)); {
		case err != nil || version < 1:
			return fmt.Errorf("format version %q is no number", text)
		case version > Version:
			return fmt.Errorf("format version %d: %w", version, ErrVersion)
		}
		return nil
	})
}

// Fresh reports whether the catalog is new, or was when its last user stopped
// before it said Settle.
func (c *Catalog) Fresh() (bool, error) {
	fresh := true
	err := c.View(func(tx *Tx) error {
		_, err := tx.get(freshKey)
		if errors.Is(err, fs.ErrNotExist) {
			fresh, err = false, nil
		}
		return err
	})
	return fresh, err
}

// Settle says that a catalog which was Fresh holds what it should.
func (c *Catalog) Settle() error {
	return c.Update(func(tx *Tx) error { return tx.remove(freshKey) })
}

// Close makes everything durable and gives up the lock. On a full disk that is
// ErrFull, on one that fails ErrReadOnly, and the lock is held until the process
// ends: nothing is lost, and the next Open goes on from the log.
func (c *Catalog) Close() error {
	if c.db.IsClosed() {
		return nil
	}
	err := c.space.release()
	if err == nil {
		err = c.closeDB()
	}
	if err != nil {
		return fmt.Errorf("close catalog: %w", err)
	}
	return nil
}

// GiveRoom gives up the reserve of disk space, 32 MiB, on a full disk: for
// somebody who is about to free more, and needs a block to do it. The reserve
// comes back when there is room to spare.
func (c *Catalog) GiveRoom() error { return c.space.yield() }

// Failure is why the catalog takes no changes until it is opened again, which is
// ErrReadOnly; nil while it does.
func (c *Catalog) Failure() error { return c.failure.err() }

// View calls f with a transaction that reads one state and cannot write.
func (c *Catalog) View(f func(*Tx) error) error {
	return closedError(c.db.View(func(t *badger.Txn) error { return f(&Tx{txn: t}) }))
}

// Update calls f with a transaction, and again if what it read was changed by
// another before it could be committed. An error of f ends it and changes
// nothing; so does a full disk, which is ErrFull. A disk that fails is
// ErrReadOnly: the change may be there or not when the catalog is opened again,
// and until then there are no more. f does not call Update.
func (c *Catalog) Update(f func(*Tx) error) error {
	for range maxAttempts {
		c.changes.RLock()
		err := c.update(f)
		c.changes.RUnlock()
		if !errors.Is(err, badger.ErrConflict) {
			return closedError(err)
		}
	}
	c.changes.Lock()
	defer c.changes.Unlock()
	return closedError(c.update(f))
}

// update is one attempt of Update.
func (c *Catalog) update(f func(*Tx) error) error {
	if err := c.failure.err(); err != nil {
		return err
	}
	ready := false
	err := c.db.Update(func(t *badger.Txn) error {
		tx := &Tx{txn: t, bytes: perEntry} // The commit is an entry too.
		if err := f(tx); err != nil {
			return err
		}
		ready = true
		return c.space.room(tx.bytes)
	})
	switch {
	case err == nil, !ready, errors.Is(err, ErrFull), errors.Is(err, badger.ErrConflict), errors.Is(err, badger.ErrTxnTooBig):
		return err
	case errors.Is(err, badger.ErrDBClosed) || errors.Is(err, badger.ErrBlockedWrites):
		return badger.ErrDBClosed
	}
	return c.failure.because(err)
}

func closedError(err error) error {
	if errors.Is(err, badger.ErrDBClosed) {
		return ErrClosed
	}
	return err
}

// A Tx is a transaction on a Catalog.
type Tx struct {
	txn   *badger.Txn
	bytes int64 // that committing it writes, at most
}

// get returns a copy of a value. A key that is not there is fs.ErrNotExist.
func (tx *Tx) get(key []byte) ([]byte, error) {
	item, err := tx.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

func (tx *Tx) put(key, value []byte) error {
	tx.bytes += int64(len(key)+len(value)) + perEntry
	return tx.txn.Set(key, value)
}

func (tx *Tx) remove(key []byte) error {
	tx.bytes += int64(len(key)) + perEntry
	return tx.txn.Delete(key)
}

// scan calls f for each key with the prefix, in ascending order, until it
// returns false. A value that cannot be read comes with its error.
func (tx *Tx) scan(prefix []byte, f func(key, value []byte, err error) bool) {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	it := tx.txn.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		value, err := it.Item().ValueCopy(nil)
		if !f(it.Item().KeyCopy(nil), value, err) {
			return
		}
	}
}

// logger gives a slog.Logger the shape that Badger wants. Badger's news about
// its own work is of interest only to who looks for a fault in it.
type logger struct {
	log     *slog.Logger
	failure *failure
}

// Errorf also hears that a table could not be written, which Badger tells nobody
// else.
func (l logger) Errorf(format string, args ...any) {
	l.log.Error(line(format, args))
	if strings.Contains(format, "error flushing memtable") {
		l.failure.because(errors.New(line(format, args)))
	}
}

func (l logger) Warningf(format string, args ...any) { l.log.Warn(line(format, args)) }
func (l logger) Infof(format string, args ...any)    { l.log.Debug(line(format, args)) }
func (l logger) Debugf(format string, args ...any)   { l.log.Debug(line(format, args)) }

func line(format string, args []any) string {
	return "catalog: " + strings.TrimSpace(fmt.Sprintf(format, args...))
}
