package catalog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Badger writes through memory maps of sparse files. When the disk is full, a
// write to a hole is a bus error, which ends the process; and a disk that holds
// thin volumes does fill. So no hole is written to while there may be no room:
//
//	the log of the table in memory   is given its blocks as soon as it appears
//	the next log, the next table     come only with room to spare
//	opening and closing              have room, if need be that of the reserve, a
//	                                 file that is given up: nobody else writes then
//
// So on a full disk changes go on as long as the log has blocks, which is for
// thousands of them, and after that until the daemon is started again.
//
// What is known of the log is an upper bound of what is in it, counted from its
// appearance. On file systems that cannot give blocks ahead (fallocate), and on
// those that copy on write, the reserve alone helps.

// memTable is the size of Badger's table in memory, in bytes. Its log is twice
// as large.
const memTable = 8 << 20

// reserveSize is the bytes that opening and closing take: a table on disk and
// one compaction of a catalog of usual size.
const reserveSize = 32 << 20

// spare is the bytes that must be free when the next log may appear. It is more
// than that takes, since others fill the disk at the same time.
const spare = 64 << 20

// perEntry is more than Badger keeps for an entry besides its key and value, in
// bytes.
const perEntry = 200

// ErrFull says that the disk has no room left for a change.
var ErrFull = errors.New("the disk of the catalog is full: make room, or start the daemon again")

// A space watches that Badger has room for what it is about to write.
type space struct {
	dir string
	log *slog.Logger

	mu       sync.Mutex
	current  string // the log that is written to; its name
	blocks   bool   // that log has all its blocks
	used     int64  // bytes in it, at most
	reserved bool   // the reserve is there
}

func (s *space) reservePath() string { return filepath.Join(s.dir, "reserve") }

// free returns the bytes that the file system can take.
func (s *space) free() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return 0, fmt.Errorf("look for room in %s: %w", s.dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// release gives up the reserve if the disk is nearly full: Badger is about to
// write new files.
func (s *space) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := s.free()
	if err != nil || free >= reserveSize {
		return err
	}
	if err := os.Remove(s.reservePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("give up the reserve: %w", err)
	}
	s.reserved = false
	if free, err = s.free(); err == nil && free < reserveSize/2 {
		return fmt.Errorf("%d MiB are free, it takes %d: %w", free>>20, reserveSize>>21, ErrFull)
	}
	return err
}

// yield gives up the reserve. It comes back when there is room to spare.
func (s *space) yield() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved = false
	if err := os.Remove(s.reservePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("give up the reserve: %w", err)
	}
	return nil
}

// take makes the reserve if there is room for it and to spare.
func (s *space) take() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := s.free()
	if err != nil {
		return err
	}
	s.fill(free)
	return nil
}

// fill is take for who holds mu and knows how much is free. Without a reserve
// the catalog works all the same.
func (s *space) fill(free int64) {
	if s.reserved || free < spare+reserveSize {
		return
	}
	f, err := os.OpenFile(s.reservePath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close())
	}
	if err != nil {
		os.Remove(s.reservePath()) // A part of it is none.
		s.log.Debug("catalog: no reserve of disk space", "error", err)
		return
	}
	s.reserved = true
}

// room returns ErrFull if a transaction of so many bytes cannot be written
// safely. It looks at the disk each time, and its other errors are those of a
// file system that has given up: XFS that shut itself down, where a write through
// the map would be a bus error.
func (s *space) room(bytes int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.follow(); err != nil {
		return err
	}
	free, err := s.free()
	if err != nil {
		return err
	}
	s.fill(free)
	if free < spare && (!s.blocks || s.used+bytes >= memTable) {
		return ErrFull
	}
	s.used += bytes
	return nil
}

// follow finds the log that is written to and, if it is a new one, gives it its
// blocks.
func (s *space) follow() error {
	entries, err := os.ReadDir(s.dir) // Sorted: the last log is the newest.
	if err != nil {
		return fmt.Errorf("look for the catalog's log: %w", err)
	}
	newest := ""
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".mem") {
			newest = e.Name()
		}
	}
	if newest != s.current {
		s.current, s.used, s.blocks = newest, 0, false
	}
	if newest == "" || s.blocks {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(s.dir, newest), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the catalog's log: %w", err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2*memTable); err != nil {
		s.log.Debug("catalog: its log gets its blocks one by one", "error", err)
		return nil // Not every file system can; and room for it may be found later.
	}
	s.blocks = true
	return nil
}
