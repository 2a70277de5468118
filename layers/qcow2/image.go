package qcow2

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"varve/layers"
)

// Options are what Open may be told.
type Options struct {
	// Backing opens the backing file of an image. name is what the image says,
	// which may be anything; format is "raw", "qcow2" or whatever else it
	// says, empty if nothing. nil: images with a backing file are refused with
	// a *BackingError.
	Backing func(name, format string) (layers.Layer, error)
}

// A BackingError is the refusal of an image that is only the difference to
// another file.
type BackingError struct{ Name string }

func (e *BackingError) Error() string {
	return fmt.Sprintf("the image is only the difference to a backing file, %q", e.Name)
}

// An Image is an open image. It is safe for concurrent use.
type Image struct {
	r        io.ReaderAt
	fileSize int64 // bytes
	head     *header
	l1       []uint64
	tables   *cache       // of L2 tables
	clusters *cache       // of clusters that were compressed
	below    layers.Layer // nil: nothing
}

var _ layers.Layer = (*Image)(nil)

// The caches' sizes in bytes. The largest cluster has 2 MiB, and an import reads
// 16 pieces of an image at once.
const (
	tableCache   = 8 << 20
	clusterCache = 32 << 20
)

// Open reads the header of an image that r has in its first fileSize bytes. r
// must not change, and stays in use as long as the image.
func Open(r io.ReaderAt, fileSize int64, o Options) (*Image, error) {
	h, err := readHeader(r, fileSize)
	if err != nil {
		return nil, fmt.Errorf("qcow2 header: %w", err)
	}
	m := &Image{r: r, fileSize: fileSize, head: h}
	m.tables = newCache(tableCache/h.clusterSize(), m.readTable)
	m.clusters = newCache(clusterCache/h.clusterSize(), m.decompress)
	if err := m.readL1(); err != nil {
		return nil, fmt.Errorf("qcow2 L1 table: %w", err)
	}
	if h.backing == "" {
		return m, nil
	}
	if o.Backing == nil {
		return nil, &BackingError{h.backing}
	}
	if m.below, err = o.Backing(h.backing, h.backingFormat); err != nil {
		return nil, fmt.Errorf("backing file %q: %w", h.backing, err)
	}
	return m, nil
}

// Size is the size of the disk in bytes.
func (m *Image) Size() int64 { return m.head.size }

func (m *Image) readL1() error {
	m.l1 = make([]uint64, m.head.l1Count)
	p := make([]byte, m.head.l1Count*8)
	if _, err := readFull(m.r, p, m.head.l1Off); err != nil {
		return err
	}
	for i := range m.l1 {
		m.l1[i] = be64(p[i*8:])
	}
	return nil
}

// ReadAt reads as layers.Layer says. What the image and the layer below say
// nothing about reads as zeros.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	case off >= m.head.size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > m.head.size-off {
		p, end = p[:m.head.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		run, err := m.run(at, off+int64(len(p)))
		if err != nil {
			return done, err
		}
		if err := m.readRun(p[done:done+int(run.n)], at, run); err != nil {
			return done, err
		}
		done += int(run.n)
	}
	return len(p), end
}

func (m *Image) readRun(p []byte, off int64, run run) error {
	switch run.kind {
	case stored:
		if _, err := readFull(m.r, p, run.host); err != nil {
			return fmt.Errorf("cluster of byte %d: %w", off, err)
		}
		return nil
	case packed:
		cluster, err := m.clusters.get(run.entry)
		if err != nil {
			return fmt.Errorf("compressed cluster of byte %d: %w", off, err)
		}
		copy(p, cluster[off%m.head.clusterSize():])
		return nil
	case absent:
		if m.below != nil {
			return readBelow(m.below, p, off)
		}
	}
	clear(p)
	return nil
}

// readBelow reads a layer that may be shorter than the image.
func readBelow(l layers.Layer, p []byte, off int64) error {
	n, err := 0, io.EOF
	if off < l.Size() {
		n, err = l.ReadAt(p, off)
	}
	if n < len(p) && !errors.Is(err, io.EOF) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("backing file: %w", err)
	}
	clear(p[n:])
	return nil
}

// Extents yields what the image says, and below it what the backing layer does.
// An L2 table is read at a time, so a consumer can stop soon.
func (m *Image) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		off, end := max(off, 0), min(off+n, m.head.size)
		for off < end {
			e, err := m.extent(off, end)
			if err != nil {
				yield(layers.Extent{}, err)
				return
			}
			switch {
			case e.Kind == layers.Absent && m.below != nil:
				for e, err := range m.below.Extents(e.Off, e.Len) {
					if !yield(e, err) || err != nil {
						return
					}
				}
			case e.Kind != layers.Absent:
				if !yield(e, nil) {
					return
				}
			}
			off = e.End()
		}
	}
}

// extent is the longest extent of one kind from off on, within [off, end) and
// one L2 table.
func (m *Image) extent(off, end int64) (layers.Extent, error) {
	end = min(end, off-off%m.head.span()+m.head.span())
	e := layers.Extent{Off: off}
	for at := off; at < end; at = e.End() {
		run, err := m.run(at, end)
		if err != nil {
			return layers.Extent{}, err
		}
		if kind := run.kind.layer(); at == off {
			e.Kind = kind
		} else if kind != e.Kind {
			break
		}
		e.Len += run.n
	}
	return e, nil
}
