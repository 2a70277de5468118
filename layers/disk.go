package layers

// A disk is the directory of a volume: all that a Volume asks of the operating
// system. The real one is osDisk; tests have one in memory that crashes.
//
// A name that was created, renamed or removed is durable after syncDir. Errors
// carry the path and keep the system's error for errors.Is.
type disk interface {
	create(name string) (file, error) // for reading and writing; must not exist
	open(name string) (file, error)   // for reading and writing
	rename(from, to string) error     // replaces to
	remove(name string) error
	link(name string, into disk) error // gives the file the same name in another directory too
	list() ([]string, error)
	free() (int64, error) // bytes that can be written before the disk is full
	syncDir() error
	syncAll(files []file) error             // sync of each, in any order
	lock() (unlock func() error, err error) // *LockedError if somebody has it
	path(name string) string                // for messages
}

// A file of a disk. Reads and writes may run concurrently. What was written is
// durable after sync.
type file interface {
	readAt(p []byte, off int64) (int, error) // io.EOF if less than len(p) is there
	writeAt(p []byte, off int64) error
	sync() error
	writeBack(off, n int64) error // sends what was written there to the disk; durable only after sync
	writeError() error            // why the system could not write something that was written before; told once, here or by writeBack or sync
	punch(off, n int64) error     // reads as zeros; gives the space back where that is possible
	truncate(size int64) error
	size() (int64, error)
	stat() (fileStat, error)
	nextData(off int64) (int64, error) // first offset from off on that may not be zero; -1: none
	close() error
}

// fileStat is what a file system knows of a file beside its content.
type fileStat struct {
	names     int   // hard links
	allocated int64 // bytes
}

// readFull fills p from off; what lies past the end of the file is zeros.
func readFull(f file, p []byte, off int64) error {
	n, err := f.readAt(p, off)
	if n < len(p) && isEOF(err) {
		clear(p[n:])
		return nil
	}
	return err
}
