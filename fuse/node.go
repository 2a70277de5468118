package fuse

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"varve/layers"
)

const (
	rootIno  = 1
	diskName = "disk.raw"

	// immutable is how long the kernel may keep what never changes.
	immutable = 24 * time.Hour
)

// A filesystem is what the nodes of one mount share.
type filesystem struct {
	index    *index
	handles  *handles
	slots    chan struct{} // holds what is free of maxFetches
	uid, gid uint32        // who owns everything: the mounter
}

func newFilesystem(base context.Context, s Source, log *slog.Logger) *filesystem {
	fsys := &filesystem{
		index:   newIndex(base, s, log),
		handles: newHandles(base, s, log),
		slots:   make(chan struct{}, maxFetches),
		uid:     uint32(os.Geteuid()),
		gid:     uint32(os.Getegid()),
	}
	for range maxFetches {
		fsys.slots <- struct{}{}
	}
	return fsys
}

// The nodes of the tree. They are made when the kernel looks them up and
// dropped when it forgets them; none of them keeps anything open.
type (
	root struct {
		gofs.Inode
		*filesystem
	}
	volumeNode struct {
		gofs.Inode
		*filesystem
		name string // as shown
		time time.Time
	}
	imageNode struct {
		gofs.Inode
		*filesystem
		entry *entry
	}
	diskNode struct {
		gofs.Inode
		*filesystem
		entry *entry
	}
)

var (
	_ gofs.NodeLookuper  = (*root)(nil)
	_ gofs.NodeReaddirer = (*root)(nil)
	_ gofs.NodeGetattrer = (*root)(nil)
	_ gofs.NodeStatfser  = (*root)(nil)
	_ gofs.NodeLookuper  = (*volumeNode)(nil)
	_ gofs.NodeReaddirer = (*volumeNode)(nil)
	_ gofs.NodeGetattrer = (*volumeNode)(nil)
	_ gofs.NodeStatfser  = (*volumeNode)(nil)
	_ gofs.NodeLookuper  = (*imageNode)(nil)
	_ gofs.NodeReaddirer = (*imageNode)(nil)
	_ gofs.NodeGetattrer = (*imageNode)(nil)
	_ gofs.NodeStatfser  = (*imageNode)(nil)
	_ gofs.NodeOpener    = (*diskNode)(nil)
	_ gofs.NodeGetattrer = (*diskNode)(nil)
	_ gofs.NodeStatfser  = (*diskNode)(nil)
)

// Lookup finds a volume.
func (n *root) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	t, err := n.index.tree(ctx)
	if err != nil {
		return nil, errno(err)
	}
	f := t.folder(name)
	if f == nil {
		return nil, syscall.ENOENT
	}
	n.folderAttr(&out.Attr, f.time)
	child := &volumeNode{filesystem: n.filesystem, name: f.name, time: f.time}
	return n.NewInode(ctx, child, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: f.ino}), 0
}

// Readdir lists the volumes.
func (n *root) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	t, err := n.index.tree(ctx)
	if err != nil {
		return nil, errno(err)
	}
	list := make([]gofuse.DirEntry, len(t.folders))
	for i, f := range t.folders {
		list[i] = gofuse.DirEntry{Name: f.name, Ino: f.ino, Mode: syscall.S_IFDIR}
	}
	return gofs.NewListDirStream(list), 0
}

// Getattr does not ask the Source, so that the mount itself can be looked at
// while the Source fails.
func (n *root) Getattr(_ context.Context, _ gofs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	n.folderAttr(&out.Attr, n.index.last().time)
	return 0
}

// Lookup finds an image.
func (n *volumeNode) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	f, errno := n.folder(ctx)
	if errno != 0 {
		return nil, errno
	}
	e := f.entry(name)
	if e == nil {
		return nil, syscall.ENOENT
	}
	n.folderAttr(&out.Attr, e.Time)
	child := &imageNode{filesystem: n.filesystem, entry: e}
	return n.NewInode(ctx, child, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: e.ino}), 0
}

// Readdir lists the images.
func (n *volumeNode) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	f, errno := n.folder(ctx)
	if errno != 0 {
		return nil, errno
	}
	list := make([]gofuse.DirEntry, len(f.entries))
	for i, e := range f.entries {
		list[i] = gofuse.DirEntry{Name: e.name, Ino: e.ino, Mode: syscall.S_IFDIR}
	}
	return gofs.NewListDirStream(list), 0
}

func (n *volumeNode) Getattr(_ context.Context, _ gofs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	modified := n.time
	if f := n.index.last().folder(n.name); f != nil {
		modified = f.time
	}
	n.folderAttr(&out.Attr, modified)
	return 0
}

// folder returns what the volume holds now.
func (n *volumeNode) folder(ctx context.Context) (*folder, syscall.Errno) {
	t, err := n.index.tree(ctx)
	if err != nil {
		return nil, errno(err)
	}
	f := t.folder(n.name)
	if f == nil {
		return nil, syscall.ENOENT
	}
	return f, 0
}

// Lookup finds disk.raw.
func (n *imageNode) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if name != diskName {
		return nil, syscall.ENOENT
	}
	n.diskAttr(&out.Attr, n.entry)
	out.SetEntryTimeout(immutable)
	out.SetAttrTimeout(immutable)
	child := &diskNode{filesystem: n.filesystem, entry: n.entry}
	return n.NewInode(ctx, child, gofs.StableAttr{Mode: syscall.S_IFREG, Ino: n.entry.diskIno}), 0
}

// Readdir lists disk.raw.
func (n *imageNode) Readdir(context.Context) (gofs.DirStream, syscall.Errno) {
	return gofs.NewListDirStream([]gofuse.DirEntry{
		{Name: diskName, Ino: n.entry.diskIno, Mode: syscall.S_IFREG},
	}), 0
}

func (n *imageNode) Getattr(_ context.Context, _ gofs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	n.folderAttr(&out.Attr, n.entry.Time)
	return 0
}

// Open opens the image. The kernel keeps its pages when it is closed: they
// never change.
func (n *diskNode) Open(ctx context.Context, _ uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	h, err := n.handles.open(ctx, n.entry.Image)
	if err != nil {
		return nil, 0, errno(err)
	}
	return &file{filesystem: n.filesystem, handle: h}, gofuse.FOPEN_KEEP_CACHE, 0
}

func (n *diskNode) Getattr(_ context.Context, _ gofs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	n.diskAttr(&out.Attr, n.entry)
	out.SetTimeout(immutable)
	return 0
}

// folderAttr fills in a folder's attributes.
func (fsys *filesystem) folderAttr(out *gofuse.Attr, modified time.Time) {
	out.Mode = syscall.S_IFDIR | 0o555
	out.Nlink = 2
	fsys.commonAttr(out, modified)
}

// diskAttr fills in the attributes of an image's disk.raw.
func (fsys *filesystem) diskAttr(out *gofuse.Attr, e *entry) {
	out.Mode = syscall.S_IFREG | 0o444
	out.Nlink = 1
	out.Size = uint64(e.Size)
	out.Blocks = diskBlocks(e.Size, e.Used)
	fsys.commonAttr(out, e.Time)
}

// commonAttr fills in the owner and the times.
func (fsys *filesystem) commonAttr(out *gofuse.Attr, modified time.Time) {
	out.Uid, out.Gid = fsys.uid, fsys.gid
	out.Blksize = layers.BlockSize
	if modified.IsZero() {
		modified = time.Unix(0, 0)
	}
	out.SetTimes(&modified, &modified, &modified)
}

// diskBlocks returns st_blocks, in units of 512 bytes, of a file of size bytes
// that has used bytes of data; zero says that this is not known. Then it is one
// less than a full file has: cp, tar and others look for holes only in a file
// that seems to have some, and some take one without any block for all zeros.
func diskBlocks(size, used int64) uint64 {
	const unit = 512
	full := (size + unit - 1) / unit
	if used > 0 {
		return uint64(min((used+unit-1)/unit, full))
	}
	return uint64(max(full-1, min(full, 1)))
}

// Statfs says that the file system is full with the images: statfs(2).
func (fsys *filesystem) Statfs(_ context.Context, out *gofuse.StatfsOut) syscall.Errno {
	t := fsys.index.last()
	out.Bsize, out.Frsize = layers.BlockSize, layers.BlockSize
	out.Blocks = t.blocks
	out.Files = uint64(len(t.images))
	out.NameLen = maxName
	return 0
}
