package repo

import (
	"bytes"
	"cmp"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// patches is a layer of changed blocks far apart.
type patches struct {
	*vast
	kinds map[int64]layers.Kind
}

func (p patches) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, b := range slices.Sorted(maps.Keys(p.kinds)) {
			e := layers.Extent{Off: b * layers.BlockSize, Len: layers.BlockSize, Kind: p.kinds[b]}.Clip(off, n).Clip(0, p.size)
			if e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// scatter writes and zeroes blocks in a few places of the volume.
func (v *vast) scatter(rnd *rand.Rand, n int) patches {
	p := patches{v, make(map[int64]layers.Kind)}
	for range n {
		b := min(rnd.Int64N(3)*spanBlocks*3/2+rnd.Int64N(3000), blocksOf(v.size)-1)
		if rnd.IntN(3) == 0 {
			delete(v.data, b)
			p.kinds[b] = layers.Zero
			continue
		}
		v.data[b], p.kinds[b] = rnd.Uint64()|1, layers.Data
	}
	return p
}

// blockDisk is a Writer that keeps blocks which are not zero.
type blockDisk struct {
	mu     sync.Mutex
	blocks map[int64][]byte
	zeroed int64 // bytes
}

func (d *blockDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 0; i < len(p); i += layers.BlockSize {
		d.blocks[(off+int64(i))/layers.BlockSize] = bytes.Clone(p[i:min(i+layers.BlockSize, len(p))])
	}
	return len(p), nil
}

func (d *blockDisk) WriteZeroes(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.zeroed += n
	return nil
}

func TestManySpans(t *testing.T) {
	// Spans of 1 GiB that are cut in 8 when their leaf grows, leaves that are
	// merged, rows that come and go.
	rnd := newRand(t)
	r := testRepo(t, object.NewMem(), true)
	r.splitLeaf = 1500
	v := newVast(5*spanBlocks*layers.BlockSize + 777)
	volume, parent := layers.NewID(), layers.ID{}
	split, deltas := false, 0
	for i := range 30 {
		changes := v.scatter(rnd, 1+rnd.IntN(300))
		if i%10 == 7 { // a span becomes all zero
			for b := range maps.Clone(v.data) {
				if b < spanBlocks {
					delete(v.data, b)
					changes.kinds[b] = layers.Zero
				}
			}
		}
		b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: volume, Parent: parent, Source: v, Changes: changes})
		if err != nil {
			t.Fatal(err)
		}
		parent = b.ID
		root, err := r.openRoot(t.Context(), parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range root.spans.rows {
			split = split || row.blocks == splitBlocks
			deltas = max(deltas, len(row.leaves)-1)
		}
		d := &blockDisk{blocks: make(map[int64][]byte)}
		if err := r.Restore(t.Context(), parent, d, RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		v.compare(t, d)
		if i%5 > 0 {
			continue
		}
		if _, err := r.Verify(t.Context(), parent, VerifyOptions{Level: Deep}); err != nil {
			t.Fatal(err)
		}
	}
	if !split || deltas == 0 {
		t.Errorf("spans were cut: %t, deltas in a row: %d; the test tests nothing", split, deltas)
	}
}

// compare checks every block, and that all others were zeroed.
func (v *vast) compare(t *testing.T, d *blockDisk) {
	t.Helper()
	written := int64(0)
	for b, got := range d.blocks {
		written += int64(len(got))
		want := make([]byte, min(layers.BlockSize, v.size-b*layers.BlockSize))
		v.ReadAt(want, b*layers.BlockSize)
		if !bytes.Equal(got, want) {
			t.Fatalf("block %d differs", b)
		}
		if v.data[b] == 0 {
			t.Fatalf("block %d is zero and was written as data", b)
		}
	}
	if len(d.blocks) != len(v.data) {
		t.Fatalf("%d blocks of data, want %d", len(d.blocks), len(v.data))
	}
	if written+d.zeroed != v.size {
		t.Fatalf("%d bytes were written and %d zeroed of %d", written, d.zeroed, v.size)
	}
}

func TestOverlay(t *testing.T) {
	// Against blocks one by one.
	rnd := newRand(t)
	random := func() []piece {
		var pieces []piece
		for b := int64(0); b < 60; {
			b += rnd.Int64N(6)
			count := 1 + rnd.Int32N(9)
			frame := rnd.Int32N(3) - 1
			p := piece{block: b, count: count, frame: frame, at: rnd.Int32N(5)}
			if p.isZero() {
				p.at = 0
			}
			pieces = append(pieces, p)
			b += int64(count)
		}
		return pieces
	}
	for range 2000 {
		upper, lower := random(), random()
		want := make(map[int64][2]int32)
		for shift, pieces := range map[int32][]piece{10: lower} {
			for _, p := range pieces {
				for i := range p.count {
					if p.isZero() {
						want[p.block+int64(i)] = [2]int32{zeroPiece, 0}
					} else {
						want[p.block+int64(i)] = [2]int32{p.frame + shift, p.at + i}
					}
				}
			}
		}
		for _, p := range upper {
			for i := range p.count {
				if p.isZero() {
					want[p.block+int64(i)] = [2]int32{zeroPiece, 0}
				} else {
					want[p.block+int64(i)] = [2]int32{p.frame, p.at + i}
				}
			}
		}
		got := overlay(slices.Clone(upper), slices.Clone(lower), 10)
		end, blocks := int64(0), 0
		for _, p := range got {
			if p.block < end || p.count <= 0 {
				t.Fatalf("out of order: %v over %v is %v", upper, lower, got)
			}
			end = p.end()
			for i := range p.count {
				w := want[p.block+int64(i)]
				if w[0] != p.frame || !p.isZero() && w[1] != p.at+i {
					t.Fatalf("block %d: %v over %v is %v", p.block+int64(i), upper, lower, got)
				}
				blocks++
			}
		}
		if blocks != len(want) {
			t.Fatalf("%d blocks, want %d: %v over %v is %v", blocks, len(want), upper, lower, got)
		}
	}
}

func TestCutter(t *testing.T) {
	// Every changed block comes once, in frames of one span, dense ones within
	// a region, sparse ones of at most 8 blocks.
	rnd := newRand(t)
	for range 200 {
		want := make(map[int64]bool)
		var frames [][]run
		c := cutter{spanOf: func(b int64) run { return run{b - b%128, 128} }}
		last := int64(0)
		c.emit = func(span run, runs, zeros []run) error {
			total := int64(0)
			for _, r := range runs {
				if r.block < last || r.block < span.block || r.block+r.count > span.block+span.count {
					t.Fatalf("run %v after block %d in span %v", r, last, span)
				}
				last = r.block + r.count
				total += r.count
				for i := range r.count {
					if !want[r.block+i] {
						t.Fatalf("block %d did not change, or came twice", r.block+i)
					}
					delete(want, r.block+i)
				}
			}
			if len(runs) > 0 && total > sparseBlocks && runs[0].block/frameBlocks != (last-1)/frameBlocks {
				t.Fatalf("a frame of %d blocks in several regions: %v", total, runs)
			}
			for _, z := range zeros {
				for i := range z.count {
					if v, ok := want[z.block+i]; !ok || v {
						t.Fatalf("block %d is not zero", z.block+i)
					}
					delete(want, z.block+i)
				}
			}
			frames = append(frames, slices.Clone(runs))
			return nil
		}
		var changes []change
		for b := int64(0); b < 600; {
			b += rnd.Int64N(1 << rnd.IntN(7))
			ch := change{run{b, 1 + rnd.Int64N(1<<rnd.IntN(7))}, rnd.IntN(4) == 0}
			for i := range ch.count {
				want[b+i] = !ch.zero
			}
			changes = append(changes, ch)
			b += ch.count
		}
		for _, ch := range changes {
			if err := c.add(ch); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		if len(want) > 0 {
			t.Fatalf("%d blocks are left out", len(want))
		}
	}
}

func TestBlockRuns(t *testing.T) {
	const k = 1024
	data := func(off, n int64) layers.Extent { return layers.Extent{Off: off, Len: n, Kind: layers.Data} }
	zero := func(off, n int64) layers.Extent { return layers.Extent{Off: off, Len: n, Kind: layers.Zero} }
	read := func(first, n int64) change { return change{run{first, n}, false} }
	blank := func(first, n int64) change { return change{run{first, n}, true} }
	for _, c := range []struct {
		name    string
		extents []layers.Extent
		want    []change
	}{
		{"nothing", nil, nil},
		{"whole blocks", []layers.Extent{data(4*k, 8*k), zero(12*k, 4*k)}, []change{read(1, 2), blank(3, 1)}},
		{"data is widened", []layers.Extent{data(5*k, 1)}, []change{read(1, 1)}},
		{"data twice in a block", []layers.Extent{data(5*k, 1), data(6*k, 5*k)}, []change{read(1, 1), read(2, 1)}},
		{"zeros are narrowed", []layers.Extent{zero(2*k, 12*k)}, []change{read(0, 1), blank(1, 2), read(3, 1)}},
		{"zeros in a block", []layers.Extent{zero(5*k, 1*k)}, []change{read(1, 1)}},
		{"zeros across an edge", []layers.Extent{zero(3*k, 2*k)}, []change{read(0, 2)}},
		{"zeros to the end", []layers.Extent{zero(16*k, 2*k)}, []change{blank(4, 1)}},
		{"data then zeros in a block", []layers.Extent{data(0, 1*k), zero(1*k, 7*k)}, []change{read(0, 1), blank(1, 1)}},
	} {
		var got []change
		for ch, err := range blockRuns(func(yield func(layers.Extent, error) bool) {
			for _, e := range c.extents {
				if !yield(e, nil) {
					return
				}
			}
		}, 18*k) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ch)
		}
		if slices.CompareFunc(got, c.want, func(a, b change) int {
			return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(a.count, b.count), map[bool]int{true: 0, false: 1}[a.zero == b.zero])
		}) != 0 {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
