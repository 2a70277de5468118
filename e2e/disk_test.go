package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"varve/e2e/testbed"
)

// A disk is a drive with a volatile cache, under a real file system. It is a
// file that FUSE serves from memory, with a loop device on it: the loop driver
// turns the file system's cache flushes into fsync, so the log of the file is
// what a drive would have seen, in its order.
//
// From the log, crash makes the images that a power loss may leave. The disk
// can also be told to fail.
type disk struct {
	t      *testing.T
	size   int64
	folder string // fuse/disk is the file, fs the mount point
	kind   string // of the file system
	device string // loop device, while attached

	mu         sync.Mutex
	image      []byte
	log        []entry
	failWrites bool
	failSyncs  bool
	failed     int // requests
}

// An entry is what a drive was asked to do.
type entry struct {
	kind entryKind
	off  int64
	n    int64
	data []byte // of a write
}

type entryKind byte

const (
	entryWrite entryKind = iota
	entryZero            // discard, or zeros
	entryFlush
)

// tearUnit is the smallest piece of a write that a power loss leaves whole:
// the sector of today's drives, and what docs/design.md, section 4, assumes.
const tearUnit = 4096

// newDisk makes a disk of size bytes with a file system on it, mounted at
// path(). All goes away with the test.
func newDisk(t *testing.T, kind string, size int64) *disk {
	t.Helper()
	testbed.RequireRoot(t)
	testbed.Require(t, "losetup", "fusermount3", "mkfs."+kind)
	d := &disk{t: t, size: size, kind: kind, folder: mountFolder(t), image: make([]byte, size)}
	for _, name := range []string{"fuse", "fs"} {
		if err := os.Mkdir(filepath.Join(d.folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d.serve()
	d.device = strings.TrimSpace(client(t, "losetup", "--find", "--show", filepath.Join(d.folder, "fuse", "disk")))
	t.Cleanup(d.detach)
	makeFS(t, kind, d.device)
	d.mount()
	return d
}

// makeFS makes a file system that does not go on to make itself in the
// background.
func makeFS(t *testing.T, kind, device string) {
	t.Helper()
	switch kind {
	case "ext4":
		client(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
	case "xfs":
		client(t, "mkfs.xfs", "-q", "-f", device)
	default:
		t.Fatalf("no file system %q", kind)
	}
}

// path is the folder where the file system is mounted.
func (d *disk) path() string { return filepath.Join(d.folder, "fs") }

func (d *disk) mount() {
	d.t.Helper()
	client(d.t, "mount", d.device, d.path())
}

func (d *disk) unmount() {
	d.t.Helper()
	client(d.t, "umount", d.path())
}

// serve mounts the FUSE file system with the one file.
func (d *disk) serve() {
	d.t.Helper()
	long := time.Hour
	options := &fs.Options{EntryTimeout: &long, AttrTimeout: &long}
	options.MaxWrite, options.DirectMountStrict, options.DisableSplice = 1<<20, true, true
	options.FsName, options.Name = "varve-e2e-disk", "disk"
	root := &diskFolder{file: &diskFile{disk: d}}
	server, err := fs.Mount(filepath.Join(d.folder, "fuse"), root, options)
	if err != nil {
		d.t.Fatalf("serve a disk by FUSE: %v", err)
	}
	d.t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			d.t.Errorf("unmount the disk: %v", err)
		}
	})
}

// detach takes file system and loop device away, whatever the state of the
// test.
func (d *disk) detach() {
	d.fail(false, false)
	if mounted(d.path()) {
		client(d.t, "umount", d.path())
	}
	if d.device != "" {
		client(d.t, "losetup", "-d", d.device)
		d.device = ""
	}
}

// now is the place in the log: what was logged so far lies before it.
func (d *disk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

// fail lets writes or flushes fail with EIO from now on, or no more.
func (d *disk) fail(writes, syncs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failWrites, d.failSyncs = writes, syncs
}

// failures is how many requests failed so far.
func (d *disk) failures() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

func (d *disk) add(e entry) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.kind == entryFlush && d.failSyncs || e.kind != entryFlush && d.failWrites {
		d.failed++
		return syscall.EIO
	}
	d.log = append(d.log, e)
	switch e.kind {
	case entryWrite:
		copy(d.image[e.off:], e.data)
	case entryZero:
		clear(d.image[e.off : e.off+e.n])
	}
	return 0
}

// A cut is a power loss.
type cut struct {
	at   int       // in the log: what lies before it was sent to the drive
	loss loss      // of what the drive had in its cache
	lies int       // flushes from this place on did nothing, if it is not 0
	seed [2]uint64 // of what is lost where that is random
}

func (c cut) String() string { return fmt.Sprintf("cut at %d, %s", c.at, c.loss) }

type loss byte

const (
	loseAll  loss = iota // the whole cache
	loseNone             // nothing
	loseSome             // some writes, and parts of others
)

func (l loss) String() string {
	return [...]string{"cache lost", "cache kept", "cache lost in parts"}[l]
}

// flushed is the place in the log before which everything is durable.
func (d *disk) flushed(c cut) int {
	end := c.at
	if c.lies > 0 {
		end = min(end, c.lies)
	}
	for end > 0 && d.log[end-1].kind != entryFlush {
		end--
	}
	return end
}

// crash writes an image that the power loss may leave to a new file. A unit
// holds what it held at the last flush, or the bytes of any write since.
func (d *disk) crash(c cut) string {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := os.Create(filepath.Join(d.folder, "crash"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(d.size); err != nil {
		d.t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(c.seed[0], c.seed[1]))
	keep := r.Float64()
	safe := d.flushed(c)
	for i, e := range d.log[:c.at] {
		switch {
		case e.kind == entryFlush, i >= safe && c.loss == loseAll:
		case i >= safe && c.loss == loseSome && r.IntN(2) == 0:
			for off := e.off; off < e.off+e.n; { // torn
				end := min(e.off+e.n, (off/tearUnit+1)*tearUnit)
				if r.Float64() < keep {
					err = apply(f, e.part(off, end))
				}
				off = end
			}
		case i >= safe && c.loss == loseSome && r.Float64() > keep:
		default:
			err = apply(f, e)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	return f.Name()
}

func (e entry) part(off, end int64) entry {
	p := entry{kind: e.kind, off: off, n: end - off}
	if e.kind == entryWrite {
		p.data = e.data[off-e.off : end-e.off]
	}
	return p
}

func apply(f *os.File, e entry) error {
	if e.kind == entryWrite {
		_, err := f.WriteAt(e.data, e.off)
		return err
	}
	const punch = 0x02 | 0x01 // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
	return syscall.Fallocate(int(f.Fd()), punch, e.off, e.n)
}

// diskFolder is the root of the FUSE file system.
type diskFolder struct {
	fs.Inode
	file *diskFile
}

func (r *diskFolder) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.file, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

// diskFile is the one file in it.
type diskFile struct {
	fs.Inode
	*disk
}

func (f *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(f.size)
	return 0
}

func (f *diskFile) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

func (f *diskFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(p, f.image[min(off, f.size):])
	return fuse.ReadResultData(p[:n]), 0
}

func (f *diskFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(p)) > f.size {
		return 0, syscall.ENOSPC
	}
	errno := f.add(entry{kind: entryWrite, off: off, n: int64(len(p)), data: append([]byte(nil), p...)})
	return uint32(len(p)), errno
}

func (f *diskFile) Allocate(_ context.Context, _ fs.FileHandle, off, n uint64, mode uint32) syscall.Errno {
	const punch, zero = 0x02, 0x10 // FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
	if mode&(punch|zero) == 0 || off+n > uint64(f.size) {
		return syscall.EOPNOTSUPP
	}
	return f.add(entry{kind: entryZero, off: int64(off), n: int64(n)})
}

func (f *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return f.add(entry{kind: entryFlush})
}
