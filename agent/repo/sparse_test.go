package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"varve/layers"
)

// A sparse is a model of a volume of several spans of which little is written:
// the seed of each block's content, and what changed since the last backup.
type sparse struct {
	id      layers.ID
	size    int64
	blocks  map[int64]uint64
	changed map[int64]layers.Kind
}

func newSparse(spans int64) *sparse {
	return &sparse{id: layers.NewID(), size: spans * spanBlocks * layers.BlockSize, blocks: make(map[int64]uint64), changed: make(map[int64]layers.Kind)}
}

// write writes count blocks side by side.
func (v *sparse) write(block, count int64, seed uint64) {
	for b := block; b < block+count; b++ {
		v.blocks[b], v.changed[b] = seed+uint64(b), layers.Data
	}
}

func (v *sparse) zero(block, count int64) {
	for b := block; b < block+count; b++ {
		delete(v.blocks, b)
		v.changed[b] = layers.Zero
	}
}

// backup makes a backup under a boundary of its own, and begins a new increment.
func (v *sparse) backup(t testing.TB, r *Repo, parent layers.ID) Backup {
	t.Helper()
	j := Job{ID: layers.NewID(), Volume: v.id, VolumeName: "sparse", Parent: parent, Boundary: layers.NewID(), Source: v.content()}
	if !parent.IsZero() {
		j.Changes = &sparseLayer{size: v.size, kinds: maps.Clone(v.changed)}
	}
	b, err := r.Create(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	clear(v.changed)
	return b
}

// content is what the volume holds now.
func (v *sparse) content() *sparseLayer {
	l := &sparseLayer{size: v.size, blocks: maps.Clone(v.blocks), kinds: make(map[int64]layers.Kind)}
	for b := range v.blocks {
		l.kinds[b] = layers.Data
	}
	return l
}

// A sparseLayer is a layers.Layer, and what a restore is compared with.
type sparseLayer struct {
	size   int64
	blocks map[int64]uint64
	kinds  map[int64]layers.Kind
}

func (l *sparseLayer) Size() int64 { return l.size }

// block is what a block holds: noise that does not shrink.
func (l *sparseLayer) block(b int64) []byte {
	p := make([]byte, layers.BlockSize)
	if seed, ok := l.blocks[b]; ok {
		rand.NewChaCha8([32]byte(append(binary.LittleEndian.AppendUint64(nil, seed), make([]byte, 24)...))).Read(p)
	}
	return p
}

func (l *sparseLayer) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off+int64(n) < l.size {
		at := off + int64(n)
		n += copy(p[n:], l.block(at / layers.BlockSize)[at%layers.BlockSize:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *sparseLayer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, b := range slices.Sorted(maps.Keys(l.kinds)) {
			e := layers.Extent{Off: b * layers.BlockSize, Len: layers.BlockSize, Kind: l.kinds[b]}
			if e = e.Clip(off, n); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// A sparseDisk takes what is restored to a blank disk.
type sparseDisk struct {
	mu     sync.Mutex
	blocks map[int64][]byte
}

func (d *sparseDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := 0; at < len(p); at += layers.BlockSize {
		d.blocks[(off+int64(at))/layers.BlockSize] = bytes.Clone(p[at : at+layers.BlockSize])
	}
	return len(p), nil
}

func (d *sparseDisk) WriteZeroes(off, n int64) error { return nil }

// restoresAs restores a backup past damage and compares all of it that is not
// told to be lost. It returns that.
func (l *sparseLayer) restoresAs(t testing.TB, r *Repo, id layers.ID, what string) (lost []Range) {
	t.Helper()
	d := &sparseDisk{blocks: make(map[int64][]byte)}
	err := r.Restore(context.WithoutCancel(t.Context()), id, d, RestoreOptions{Blank: true, Lost: func(l Loss) error {
		lost = append(lost, l.Range)
		return nil
	}})
	if err != nil {
		t.Errorf("%s: restore: %v", what, err)
		return nil
	}
	lost = JoinRanges(lost)
	for b := range l.blocks {
		off := b * layers.BlockSize
		if slices.ContainsFunc(lost, func(r Range) bool { return off >= r.Off && off < r.Off+r.Len }) {
			continue
		}
		if !bytes.Equal(d.blocks[b], l.block(b)) {
			t.Errorf("%s: block %d is restored as something else", what, b)
			return lost
		}
	}
	for b, p := range d.blocks {
		if _, ok := l.blocks[b]; !ok && !bytes.Equal(p, zeroBlock[:]) {
			t.Errorf("%s: block %d is zero, and is restored with something in it", what, b)
			return lost
		}
	}
	return lost
}
