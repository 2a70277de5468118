package nbdtest

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"

	"varve/layers"
)

// A Memory is an nbd.Device in memory. It begins empty: every block is absent.
type Memory struct {
	mu     sync.RWMutex
	bytes  []byte
	kinds  []layers.Kind // of each block of layers.BlockSize
	Faults Faults
}

// Faults are called at the beginning of a method, outside its lock, if they
// are set. An error is the method's result. They are set before the device is
// used.
type Faults struct {
	Read, Write, Zero func(off, n int64) error
	Flush             func() error
}

// NewMemory returns a Memory of size bytes.
func NewMemory(size int64) *Memory {
	blocks := (size + layers.BlockSize - 1) / layers.BlockSize
	return &Memory{bytes: make([]byte, size), kinds: make([]layers.Kind, blocks)}
}

// Size is the number of bytes.
func (m *Memory) Size() int64 { return int64(len(m.bytes)) }

// ReadAt reads as io.ReaderAt says.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := fault(m.Faults.Read, off, int64(len(p))); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	}
	if off >= m.Size() {
		return 0, io.EOF
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := copy(p, m.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes p at off, or nothing if it does not fit.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := fault(m.Faults.Write, off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := m.fits("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.bytes[off:], p)
	for i := off / layers.BlockSize; i*layers.BlockSize < off+int64(len(p)); i++ {
		m.kinds[i] = layers.Data
	}
	return len(p), nil
}

// WriteZeroes makes [off, off+n) read as zeros; whole blocks of it are Zero.
func (m *Memory) WriteZeroes(off, n int64) error {
	if err := fault(m.Faults.Zero, off, n); err != nil {
		return err
	}
	if err := m.fits("zero", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.bytes[off : off+n])
	first, last := (off+layers.BlockSize-1)/layers.BlockSize, (off+n)/layers.BlockSize
	for i := first; i < last; i++ {
		m.kinds[i] = layers.Zero
	}
	return nil
}

// Flush does nothing: memory is as durable as it gets.
func (m *Memory) Flush() error {
	if m.Faults.Flush != nil {
		return m.Faults.Flush()
	}
	return nil
}

// Extents yields runs of blocks of one kind.
func (m *Memory) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		end := min(off+n, m.Size())
		for off = max(off, 0); off < end; {
			e := m.extent(off, end)
			if e.Kind != layers.Absent && !yield(e, nil) {
				return
			}
			off = e.End()
		}
	}
}

// extent is the run of blocks of one kind that begins at off and ends by end.
func (m *Memory) extent(off, end int64) layers.Extent {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i := off / layers.BlockSize
	kind := m.kinds[i]
	for i*layers.BlockSize < end && m.kinds[i] == kind {
		i++
	}
	return layers.Extent{Off: off, Len: min(i*layers.BlockSize, end) - off, Kind: kind}
}

func (m *Memory) fits(act string, off, n int64) error {
	if off < 0 || n < 0 || off > m.Size()-n {
		return fmt.Errorf("%s [%d, +%d): beyond the size %d: %w", act, off, n, m.Size(), fs.ErrInvalid)
	}
	return nil
}

func fault(f func(off, n int64) error, off, n int64) error {
	if f == nil {
		return nil
	}
	return f(off, n)
}
