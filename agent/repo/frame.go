package repo

import (
	"bytes"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"varve/layers"
)

// A task is the way of one frame from the source into a pack. Tasks are used
// again, so that a backup allocates for the few that are under way only.
type task struct {
	span  run
	runs  []run // to read, at most frameBlocks blocks
	zeros []run // known to be zero

	seed   *leaf // what the span's leaf begins with; nil: nothing
	seeded int64 // blocks of data in seed

	plain  []byte // the blocks that are not zero
	packed []byte // plain, compressed

	err     error
	blocks  []int64  // of the volume, those in plain
	sums    []uint32 // of blocks, as they were read
	matches []match  // that are not in plain, once that is packed
	blank   []int64  // of the volume, those read that are zero
	id      frameID
	zstd    bool

	before  <-chan struct{} // the task before this one has matched its blocks
	matched chan struct{}   // so has this one
	done    chan struct{}
}

func newTask() *task {
	return &task{
		plain: make([]byte, 0, frameBytes), packed: make([]byte, 0, frameBytes+4096),
		blocks: make([]int64, 0, frameBlocks), sums: make([]uint32, 0, frameBlocks), blank: make([]int64, 0, frameBlocks),
		matched: make(chan struct{}, 1), done: make(chan struct{}, 1),
	}
}

var zeroBlock [layers.BlockSize]byte

// read fetches the blocks and drops those that are zero.
func (t *task) read(source io.ReaderAt, size int64) error {
	t.plain, t.blocks, t.blank = t.plain[:0], t.blocks[:0], t.blank[:0]
	for _, r := range t.runs {
		buf := t.plain[len(t.plain) : len(t.plain)+int(r.count)*layers.BlockSize]
		off := r.block * layers.BlockSize
		want := int(min(int64(len(buf)), size-off))
		if n, err := source.ReadAt(buf[:want], off); n < want {
			return fmt.Errorf("read source at %d: %w", off+int64(n), orUnexpected(err))
		}
		clear(buf[want:]) // the last block of a volume may be cut
		for i := range r.count {
			block := buf[i*layers.BlockSize : (i+1)*layers.BlockSize]
			if bytes.Equal(block, zeroBlock[:]) {
				t.blank = append(t.blank, r.block+i)
				continue
			}
			t.plain = append(t.plain, block...) // onto itself until a zero was dropped
			t.blocks = append(t.blocks, r.block+i)
		}
	}
	return nil
}

func orUnexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// load reads, and sums up the blocks.
func (t *task) load(source io.ReaderAt, size int64) {
	t.matches, t.sums = t.matches[:0], t.sums[:0]
	if t.err = t.read(source, size); t.err != nil {
		return
	}
	for i := range t.blocks {
		t.sums = append(t.sums, sumOfBlock(t.plain[i*layers.BlockSize:(i+1)*layers.BlockSize]))
	}
}

// pack hashes and compresses what was read, but for matches.
func (t *task) pack(ids *blake3.Hasher, c Compression, trier *trier) {
	t.zstd = false
	if t.err != nil || len(t.blocks) == 0 {
		return
	}
	t.id = sectionID(ids, t.plain)
	if !trier.try() {
		return
	}
	t.packed = c.compress(t.packed[:0], t.plain)
	t.zstd = shrinks(len(t.packed), len(t.plain))
	trier.result(t.zstd)
}

// text is what goes into the pack.
func (t *task) text() []byte {
	if t.zstd {
		return t.packed
	}
	return t.plain
}

// bytes is how much of the source the task has examined, or found stored.
func (t *task) bytes() int64 {
	n := t.seeded
	for _, r := range t.runs {
		n += r.count
	}
	return n * layers.BlockSize
}

// runsOf joins ascending blocks to runs.
func runsOf(blocks []int64) []run {
	n := 0
	for i := range blocks {
		if i == 0 || blocks[i] != blocks[i-1]+1 {
			n++
		}
	}
	runs := make([]run, 0, n)
	for i, b := range blocks {
		if i == 0 || b != blocks[i-1]+1 {
			runs = append(runs, run{block: b})
		}
		runs[len(runs)-1].count++
	}
	return runs
}
