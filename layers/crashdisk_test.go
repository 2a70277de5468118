package layers

import (
	"bytes"
	"cmp"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// memDisk is a disk in memory that can lose power. Between two syncs of a file
// each unit of it goes through versions, and after a crash any one of them may be
// on the platter, whatever became of its neighbours: writes are lost, torn
// between units, and done in any order. A unit is a block of 4096 bytes in a
// .data file and a sector of 512 bytes elsewhere. The same holds for each name in
// the directory between two syncs of it. How many names a file has is never
// wrong: a file system counts them with each that comes or goes.
type memDisk struct {
	*memWorld
	names map[string]*memFile
	past  map[string][]*memFile // versions of a name since the last syncDir; nil: it was not there
}

// memWorld is what loses power at once: some directories, and the files that
// they may share.
type memWorld struct {
	mu   sync.Mutex
	dirs []*memDisk
	hook func() // called before each operation, without mu
	fail func(op, name string) error
	left int64        // bytes that it says are free; 0: more than anybody asks for
	most int64        // bytes of a file; 0: no limit
	sent []span       // blocks of .data files that writeBack was called for
	lost atomic.Int64 // times that lose was called
}

type memFile struct {
	d     *memWorld
	name  string // that it was created with
	unit  int64
	data  []byte
	past  map[int64][][]byte // versions of a unit since the last sync, the synced one first
	sizes []int64            // lengths since the last sync, the synced one first
}

func newMemDisk() *memDisk { return new(memWorld).mkdir() }

// mkdir adds a directory.
func (w *memWorld) mkdir() *memDisk {
	d := &memDisk{memWorld: w, names: map[string]*memFile{}, past: map[string][]*memFile{}}
	w.dirs = append(w.dirs, d)
	return d
}

// begin is called at the start of each operation.
func (w *memWorld) begin(op, name string) error {
	if w.hook != nil {
		w.hook()
	}
	if w.fail != nil {
		if err := w.fail(op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (d *memDisk) path(name string) string { return name }

func (d *memDisk) create(name string) (file, error) {
	if err := d.begin("create", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: syscall.EEXIST}
	}
	f := &memFile{d: d.memWorld, name: name, unit: sectorSize, past: map[int64][][]byte{}, sizes: []int64{0}}
	if strings.HasSuffix(name, ".data") {
		f.unit = BlockSize
	}
	d.set(name, f)
	return f, nil
}

// set gives a name a new version. The caller holds mu.
func (d *memDisk) set(name string, f *memFile) {
	if d.past[name] == nil {
		d.past[name] = []*memFile{d.names[name]}
	}
	d.past[name] = append(d.past[name], f)
	if f == nil {
		delete(d.names, name)
	} else {
		d.names[name] = f
	}
}

func (d *memDisk) open(name string) (file, error) {
	if err := d.begin("open", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.names[name]; f != nil {
		return f, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
}

func (d *memDisk) rename(from, to string) error {
	if err := d.begin("rename", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[from]
	if f == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: syscall.ENOENT}
	}
	d.set(to, f)
	d.set(from, nil)
	return nil
}

func (d *memDisk) remove(name string) error {
	if err := d.begin("remove", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	d.set(name, nil)
	return nil
}

func (d *memDisk) link(name string, into disk) error {
	if err := d.begin("link", name); err != nil {
		return err
	}
	to := into.(*memDisk)
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil || to.names[name] != nil {
		return &fs.PathError{Op: "link", Path: name, Err: syscall.EINVAL}
	}
	to.set(name, f)
	return nil
}

func (d *memDisk) list() ([]string, error) {
	if err := d.begin("list", "."); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names)), nil
}

func (d *memDisk) free() (int64, error) {
	if err := d.begin("statfs", "."); err != nil {
		return 0, err
	}
	return cmp.Or(d.left, math.MaxInt64), nil
}

func (d *memDisk) syncDir() error {
	if err := d.begin("sync", "."); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.past)
	return nil
}

// syncAll keeps an order, so that a history can be replayed.
func (d *memDisk) syncAll(files []file) error {
	for _, f := range files {
		if err := f.sync(); err != nil {
			return err
		}
	}
	return nil
}

func (d *memDisk) lock() (func() error, error) { return func() error { return nil }, nil }

// crash returns the directory as it may be found after a loss of power now, with
// all others of its world.
func (d *memDisk) crash(r *rand.Rand) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := new(memWorld)
	files := map[*memFile]*memFile{}
	for _, dir := range d.dirs {
		dir.crashInto(w.mkdir(), files, r)
	}
	return w.dirs[slices.Index(d.dirs, d)]
}

// crashInto fills out, with one copy of a file that has several names.
func (d *memDisk) crashInto(out *memDisk, files map[*memFile]*memFile, r *rand.Rand) {
	all := map[string]bool{}
	for name := range d.names {
		all[name] = true
	}
	for name := range d.past {
		all[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := d.names[name]
		if past := d.past[name]; past != nil {
			f = past[r.IntN(len(past))]
		}
		if f == nil {
			continue
		}
		if files[f] == nil {
			files[f] = f.crash(out.memWorld, r)
		}
		out.names[name] = files[f]
	}
}

// lose gives up what was not synced of a file, of all files if it has no name, as
// a crash does, while the machine runs on. Names stay, and the lengths of files. A
// sync that is under way meanwhile fails.
func (d *memDisk) lose(file string, r *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost.Add(1)
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if f := d.names[name]; file == "" || file == f.name {
			f.turnBack(f, r)
		}
	}
}

func (f *memFile) crash(d *memWorld, r *rand.Rand) *memFile {
	out := &memFile{d: d, name: f.name, unit: f.unit, past: map[int64][][]byte{}}
	size := f.sizes[r.IntN(len(f.sizes))]
	out.sizes = []int64{size}
	out.data = make([]byte, size)
	copy(out.data, f.data)
	f.turnBack(out, r)
	return out
}

// turnBack gives units of out, which has the same data, versions that they had
// since the last sync.
func (f *memFile) turnBack(out *memFile, r *rand.Rand) {
	size := int64(len(out.data))
	// Half of the crashes lose or keep nearly all: the middle is not all there is.
	lean := r.IntN(4)
	for _, u := range slices.Sorted(maps.Keys(f.past)) {
		past := f.past[u]
		i := r.IntN(len(past) + 1)
		if lean == 0 && r.IntN(8) > 0 {
			i = 0
		} else if lean == 1 && r.IntN(8) > 0 {
			i = len(past)
		}
		if i == len(past) || u*f.unit >= size {
			continue // as it is in memory
		}
		unit := out.data[u*f.unit : min(size, (u+1)*f.unit)]
		clear(unit)
		copy(unit, past[i])
	}
}

// keep remembers the versions of the units of [off, off+n) before they change.
// The caller holds mu.
func (f *memFile) keep(off, n int64) {
	for u := off / f.unit; u*f.unit < off+n; u++ {
		start := min(u*f.unit, int64(len(f.data)))
		end := min((u+1)*f.unit, int64(len(f.data)))
		f.past[u] = append(f.past[u], slices.Clone(f.data[start:end]))
	}
}

func (f *memFile) readAt(p []byte, off int64) (int, error) {
	if err := f.d.begin("read", f.name); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// writeAt is done in two parts, with a crash possible between them, at a unit
// that is as good as any.
func (f *memFile) writeAt(p []byte, off int64) error {
	half := (off + int64(len(p))/2) / f.unit * f.unit
	if half > off && half < off+int64(len(p)) {
		if err := f.put(p[:half-off], off); err != nil {
			return err
		}
		p, off = p[half-off:], half
	}
	return f.put(p, off)
}

func (f *memFile) put(p []byte, off int64) error {
	if err := f.d.begin("write", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.keep(off, int64(len(p)))
	if end := off + int64(len(p)); end > int64(len(f.data)) {
		f.resize(end)
	}
	copy(f.data[off:], p)
	return nil
}

func (f *memFile) resize(size int64) {
	if size > int64(len(f.data)) {
		f.data = append(f.data, make([]byte, size-int64(len(f.data)))...)
	}
	f.data = f.data[:size]
	f.sizes = append(f.sizes, size)
}

func (f *memFile) sync() error {
	lost := f.d.lost.Load()
	if err := f.d.begin("sync", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.lost.Load() != lost {
		return &fs.PathError{Op: "sync", Path: f.name, Err: syscall.EIO}
	}
	clear(f.past)
	f.sizes = []int64{int64(len(f.data))}
	return nil
}

// writeBack makes nothing durable: what it wrote may be lost like anything else
// that was not synced.
func (f *memFile) writeBack(off, n int64) error {
	if err := f.d.begin("write back", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.unit == BlockSize {
		f.d.sent = append(f.d.sent, span{off / BlockSize, (off + n) / BlockSize})
	}
	return nil
}

func (f *memFile) writeError() error { return f.d.begin("write error", f.name) }

func (f *memFile) punch(off, n int64) error {
	if err := f.d.begin("punch", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	end := min(off+n, int64(len(f.data)))
	if off >= end {
		return nil
	}
	f.keep(off, end-off)
	clear(f.data[off:end])
	return nil
}

func (f *memFile) truncate(size int64) error {
	if err := f.d.begin("truncate", f.name); err != nil {
		return err
	}
	if f.d.most > 0 && size > f.d.most {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: syscall.EFBIG}
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.resize(size)
	return nil
}

func (f *memFile) size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *memFile) stat() (fileStat, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	var st fileStat
	for _, dir := range f.d.dirs {
		for _, other := range dir.names {
			if other == f {
				st.names++
			}
		}
	}
	for off := 0; off < len(f.data); off += BlockSize {
		if b := f.data[off:min(off+BlockSize, len(f.data))]; !bytes.Equal(b, zeroBlock[:len(b)]) {
			st.allocated += BlockSize
		}
	}
	return st, nil
}

func (f *memFile) nextData(off int64) (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for ; off < int64(len(f.data)); off = (off/BlockSize + 1) * BlockSize {
		if b := f.data[off:min((off/BlockSize+1)*BlockSize, int64(len(f.data)))]; !bytes.Equal(b, zeroBlock[:len(b)]) {
			return off, nil
		}
	}
	return -1, nil
}

func (f *memFile) close() error { return nil }
