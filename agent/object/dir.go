package object

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// staleAfter is how long a staged file must have been left alone before it is
// taken for the leftover of a crash. Other hosts may be writing to the same
// folder, and no Put pauses that long.
const staleAfter = 24 * time.Hour

// Dir returns the Store in the folder at path, which [CreateDir] has made
// before. A folder without its marker is refused: it may be the empty mount
// point of a file system that is not there today, and backups written to it
// would vanish under the mount. The marker is looked for again at each Put and
// List, and whenever an object is not found; it has to be the same as at first,
// so that nothing goes into another target that was put in the folder's place.
//
// The object "a/b" is the file a/b. A Put writes a file in the folder
// VARVE-TMP, syncs it, renames it and syncs the folder it comes to lie in, so
// after a crash an object is there whole or not at all. What a crash left in
// VARVE-TMP is removed after a day, when the folder is opened or written to.
// Folders that become empty stay.
func Dir(path string) (Store, error) {
	d, err := newDir(path)
	if err != nil {
		return nil, err
	}
	if err := d.present(); err != nil {
		return nil, d.fail("open", "", err)
	}
	d.sweep()
	return d, nil
}

// CreateDir makes the folder at path a place for a Store and opens it. The
// folder is created if it is missing (its parents are not), and may hold
// nothing that is not ours: an empty folder, a fresh file system, or what an
// earlier CreateDir made.
func CreateDir(path string) (Store, error) {
	d, err := newDir(path)
	if err != nil {
		return nil, err
	}
	if err := d.create(); err != nil {
		return nil, d.fail("open", "", err)
	}
	d.sweep()
	return d, nil
}

type dir struct {
	root string // absolute

	// made holds the folders below root that are known to be durable: they
	// were there, or were made and the folder above was synced. mu is held
	// while one is made, so that nobody relies on it before.
	mu    sync.Mutex
	made  map[string]bool
	swept time.Time

	marker marker
}

func newDir(path string) (*dir, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, &Error{Op: "open", Store: path, Err: err}
	}
	return &dir{root: root, made: make(map[string]bool)}, nil
}

func (d *dir) create() error {
	err := os.Mkdir(d.root, 0o700)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the folder above does not exist; is the file system mounted? If so, make it first: mkdir -p %s", filepath.Dir(d.root))
	case err != nil && !errors.Is(err, fs.ErrExist):
		return err
	case err == nil:
		if err := syncFolder(filepath.Dir(d.root)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case markerName:
			return d.present()
		case stagingName, "lost+found", ".snapshot", ".zfs":
		default:
			return fmt.Errorf("the folder holds other files (%s among them): %w", e.Name(), ErrOccupied)
		}
	}
	if err := os.Mkdir(filepath.Join(d.root, stagingName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.mark(); err != nil {
		return err
	}
	return d.present()
}

// begin is what every operation on a name begins with. It counts as a request.
func (d *dir) begin(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	return paceOf(ctx).requests.take(ctx, 1)
}

func (d *dir) Put(ctx context.Context, name string, data []byte) error {
	if err := d.begin(ctx, name); err != nil {
		return d.fail("put", name, err)
	}
	if err := d.present(); err != nil {
		return d.fail("put", name, err)
	}
	d.sweep()
	err := d.put(ctx, name, data)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the folder that we knew: once more from the start.
		d.mu.Lock()
		clear(d.made)
		d.mu.Unlock()
		err = d.put(ctx, name, data)
	}
	if errors.Is(err, fs.ErrNotExist) {
		// Not fs.ErrNotExist, since the object may well be there.
		if away := d.present(); away != nil {
			err = away
		} else {
			err = fmt.Errorf("%v, as if somebody moved the folder meanwhile; %w", err, ErrAway)
		}
	}
	if err != nil {
		return d.fail("put", name, err)
	}
	return nil
}

func (d *dir) put(ctx context.Context, name string, data []byte) error {
	if err := d.makeFolder(filepath.Dir(name)); err != nil {
		return err
	}
	if err := d.makeFolder(stagingName); err != nil {
		return err
	}
	return d.write(ctx, name, data)
}

// write makes the file name, below root, hold data: all of it, durably, or as
// before. Its folder and the staging folder exist.
func (d *dir) write(ctx context.Context, name string, data []byte) error {
	staged, err := d.stage(ctx, data)
	if err != nil {
		return err
	}
	path := filepath.Join(d.root, filepath.FromSlash(name))
	if err := os.Rename(staged, path); err != nil {
		os.Remove(staged)
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// stage makes a durable file in the staging folder that holds data.
func (d *dir) stage(ctx context.Context, data []byte) (path string, err error) {
	staged := filepath.Join(d.root, stagingName, rand.Text())
	f, err := os.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close() // a second time after a failed Close, which is harmless
			os.Remove(staged)
		}
	}()
	up := &paceOf(ctx).up
	for len(data) > 0 {
		n := up.piece(min(len(data), 1<<20))
		if err := up.take(ctx, int64(n)); err != nil {
			return "", err
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if _, err := f.Write(data[:n]); err != nil {
			return "", err
		}
		data = data[n:]
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return staged, f.Close()
}

// makeFolder makes the folder name, below root, and all above it, durably.
func (d *dir) makeFolder(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.makeFolderLocked(name)
}

func (d *dir) makeFolderLocked(name string) error {
	if name == "." || d.made[name] {
		return nil
	}
	above := filepath.Dir(name)
	if err := d.makeFolderLocked(above); err != nil {
		return err
	}
	err := os.Mkdir(filepath.Join(d.root, name), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// One that was there may be a crashed process's, not yet durable.
	if err := syncFolder(filepath.Join(d.root, above)); err != nil {
		return err
	}
	d.made[name] = true
	return nil
}

func (d *dir) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := d.begin(ctx, name); err != nil {
		return 0, d.fail("get", name, err)
	}
	if off < 0 {
		return 0, d.fail("get", name, errNegative)
	}
	n, err := d.get(ctx, name, p, off)
	if err == nil || err == io.EOF {
		return n, err
	}
	if missing(err) {
		if err = d.present(); err == nil {
			err = fs.ErrNotExist
		}
	}
	return n, d.fail("get", name, err)
}

func (d *dir) get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	f, err := os.Open(filepath.Join(d.root, filepath.FromSlash(name)))
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read from
	if len(p) > 0 {
		return readPaced(ctx, f, p, off)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case info.IsDir():
		return 0, syscall.EISDIR
	case off >= info.Size():
		return 0, io.EOF
	}
	return 0, nil
}

// readPaced is f.ReadAt at the pace of ctx.
func readPaced(ctx context.Context, f *os.File, p []byte, off int64) (n int, err error) {
	down := &paceOf(ctx).down
	for n < len(p) && err == nil {
		piece := down.piece(len(p) - n)
		if err := down.take(ctx, int64(piece)); err != nil {
			return n, err
		}
		var got int
		got, err = f.ReadAt(p[n:n+piece], off+int64(n))
		n += got
	}
	return n, err
}

// missing says whether err means that there is no such object. A folder of that
// name is none, nor is what would lie below an object.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENOTDIR)
}

func (d *dir) Delete(ctx context.Context, names ...string) error {
	folders := make(map[string]bool)
	for _, name := range names {
		if err := d.begin(ctx, name); err != nil {
			return d.fail("delete", name, err)
		}
		path := filepath.Join(d.root, filepath.FromSlash(name))
		var err error
		ended := InTurn(ctx, func(context.Context) error {
			err = syscall.Unlink(path)
			return nil
		})
		switch {
		case ended != nil:
			return d.fail("delete", name, ended)
		case err == nil:
			folders[filepath.Dir(path)] = true
		case missing(err):
			if err := d.present(); err != nil {
				return d.fail("delete", name, err)
			}
		default:
			return d.fail("delete", name, err)
		}
	}
	for folder := range folders {
		if err := syncFolder(folder); err != nil {
			return d.fail("delete", names[0], err)
		}
	}
	return nil
}

func (d *dir) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		err := paceOf(ctx).requests.take(ctx, 1)
		if err == nil {
			err = d.present()
		}
		more := false
		if err == nil {
			more, err = d.walk(ctx, ".", prefix, func(i Info) bool { return yield(i, nil) })
		}
		if err == nil && more {
			err = d.present() // or else this was the end of what is left of it
		}
		if err != nil {
			yield(Info{}, d.fail("list", prefix, err))
		}
	}
}

// walk yields the objects in the folder, below root, whose names begin with
// prefix, until yield returns false; then so does walk.
func (d *dir) walk(ctx context.Context, folder, prefix string, yield func(Info) bool) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Join(d.root, folder))
	if missing(err) && folder != "." {
		return true, nil // removed while we walked
	} else if err != nil {
		return false, err
	}
	// In the order of whole names a folder sorts as if it ended in a slash.
	key := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(key(a), key(b)) })
	for _, e := range entries {
		name := e.Name()
		if folder != "." {
			name = folder + "/" + name
		}
		if CheckName(name) != nil {
			continue
		}
		switch {
		case e.IsDir():
			if below := name + "/"; !strings.HasPrefix(below, prefix) && !strings.HasPrefix(prefix, below) {
				continue
			}
			if more, err := d.walk(ctx, name, prefix, yield); !more || err != nil {
				return more, err
			}
		case e.Type().IsRegular() && strings.HasPrefix(name, prefix):
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return false, err
			}
			if !yield(Info{Name: name, Size: info.Size(), Modified: info.ModTime()}) {
				return false, nil
			}
		}
	}
	return true, nil
}

// sweep removes what crashed Puts have left, at most once in staleAfter. It is
// housekeeping: what it cannot do now will be tried another day.
func (d *dir) sweep() {
	d.mu.Lock()
	now := time.Now()
	due := now.Sub(d.swept) >= staleAfter
	if due {
		d.swept = now
	}
	d.mu.Unlock()
	if !due {
		return
	}
	staging := filepath.Join(d.root, stagingName)
	entries, err := os.ReadDir(staging)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > staleAfter {
			os.Remove(filepath.Join(staging, e.Name()))
		}
	}
}

// fail wraps err. What a network file system says of its own trouble is
// temporary, the rest is not.
func (d *dir) fail(op, name string, err error) error {
	e := &Error{Op: op, Name: name, Store: "file://" + d.root, Err: err}
	for _, errno := range []error{syscall.ESTALE, syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EINTR} {
		e.Temporary = e.Temporary || errors.Is(err, errno)
	}
	return e
}

// syncFolder makes the entries of a folder durable. Some file systems have no
// such thing and say EINVAL or ENOTSUP: they promise nothing that one could
// wait for.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
