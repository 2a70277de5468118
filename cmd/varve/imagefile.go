package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"varve/layers"
	"varve/layers/qcow2"
)

// imageFormats are those that import and export know; auto is for import.
var imageFormats = []string{"raw", "qcow2"}

// A rawFile is a file or block device as a layer: its holes are not data. It
// must not change while it is read.
type rawFile struct {
	*os.File
	size int64

	mu sync.Mutex // held for a seek, which a file has one place for
}

// openRaw opens a file or block device for reading.
func openRaw(f *os.File) (*rawFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() && mode&fs.ModeDevice == 0 || mode&fs.ModeCharDevice != 0 {
		return nil, usagef("%s is neither a file nor a block device", f.Name())
	}
	size, err := f.Seek(0, io.SeekEnd) // the size of a device too
	if err != nil {
		return nil, err
	}
	return &rawFile{File: f, size: size}, nil
}

func (r *rawFile) Size() int64 { return r.size }

// Extents asks the file system for holes: lseek(2), SEEK_DATA. Where it does
// not know, all is data.
func (r *rawFile) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		off, end := max(off, 0), min(off+n, r.size)
		for off < end {
			e, err := r.data(off, end)
			if err != nil || e.Len > 0 && !yield(e, nil) {
				if err != nil {
					yield(layers.Extent{}, err)
				}
				return
			}
			off = e.End()
		}
	}
}

// data is the next data from off on; its length is 0 if there is none before
// end.
func (r *rawFile) data(off, end int64) (layers.Extent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	start, err := unix.Seek(int(r.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return layers.Extent{Off: end}, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return layers.Extent{Off: off, Len: end - off, Kind: layers.Data}, nil
	case err != nil:
		return layers.Extent{}, fmt.Errorf("find the data of %s: %w", r.Name(), err)
	case start >= end:
		return layers.Extent{Off: end}, nil
	}
	hole, err := unix.Seek(int(r.Fd()), start, unix.SEEK_HOLE)
	if err != nil || hole <= start {
		hole = end
	}
	return layers.Extent{Off: start, Len: min(hole, end) - start, Kind: layers.Data}, nil
}

// An imageFile is an image with the files that it is read from.
type imageFile struct {
	layers.Layer
	files []io.Closer
}

func (i *imageFile) Close() {
	for _, f := range i.files {
		f.Close() // only read
	}
}

// maxBacking is how many images may lie on one another.
const maxBacking = 32

// openImage opens a disk image. format is raw, qcow2, or auto. A backing file
// is followed only if backing is set, and then only within the image's folder
// and those below it: what an image names is its maker's choice, and it shall
// not make anybody read their secrets into a volume.
func openImage(path, format string, backing bool) (*imageFile, error) {
	i := &imageFile{}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	i.files = append(i.files, f)
	var root *os.Root
	if backing {
		real, err := filepath.Abs(path)
		if err == nil {
			real, err = filepath.EvalSymlinks(real)
		}
		if err == nil {
			root, err = os.OpenRoot(filepath.Dir(real))
		}
		if err != nil {
			i.Close()
			return nil, err
		}
		i.files = append(i.files, root)
		path = filepath.Base(real)
	}
	if i.Layer, err = i.open(f, path, format, root, 0); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// open reads one file of a chain of images. name is its path below root.
func (i *imageFile) open(f *os.File, name, format string, root *os.Root, depth int) (layers.Layer, error) {
	raw, err := openRaw(f)
	if err != nil {
		return nil, err
	}
	switch format {
	case "auto":
		start := make([]byte, len(qcow2.Magic))
		if n, _ := raw.ReadAt(start, 0); n < len(start) || string(start) != qcow2.Magic {
			return raw, nil
		}
	case "raw":
		return raw, nil
	case "qcow2":
	default:
		return nil, fmt.Errorf("format %q is not supported: only raw and qcow2", format)
	}
	o := qcow2.Options{}
	if root != nil {
		o.Backing = func(backing, format string) (layers.Layer, error) {
			return i.below(root, name, backing, format, depth+1)
		}
	}
	image, err := qcow2.Open(raw, raw.size, o)
	var refused *qcow2.BackingError
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("%w; if you trust the image, --allow-backing reads that too, if it lies beside the image", err)
	}
	if err != nil {
		return nil, err
	}
	return image, nil
}

// below opens the backing file of name.
func (i *imageFile) below(root *os.Root, name, backing, format string, depth int) (layers.Layer, error) {
	switch {
	case depth > maxBacking:
		return nil, fmt.Errorf("more than %d images lie on one another, or they go round in a circle", maxBacking)
	case format == "":
		// A guest can write a header into its raw disk: it must not be guessed.
		return nil, errors.New("the image does not say its format; qemu-img rebase -u -F FORMAT puts it in")
	}
	path := filepath.Join(filepath.Dir(name), backing)
	if filepath.IsAbs(backing) {
		inside, err := filepath.Rel(root.Name(), filepath.Clean(backing))
		if err != nil {
			return nil, err
		}
		path = inside
	}
	f, err := root.Open(path) // which refuses what leads out of it
	if err != nil {
		return nil, fmt.Errorf("%w; only files in the image's folder are read", err)
	}
	i.files = append(i.files, f)
	return i.open(f, path, format, root, depth)
}
