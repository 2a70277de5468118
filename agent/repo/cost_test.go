package repo

import (
	"context"
	"encoding/binary"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// The costs of docs/design.md, section 7, checked without a clock.

// denseLeaf is 1 GiB of dense frames whose stored lengths are as random as those of
// real data.
func denseLeaf(rnd *rand.Rand) *leaf {
	l := &leaf{base: true, blocks: spanBlocks}
	number, off := uint32(0), int64(headerSize)
	for block := int64(0); block < spanBlocks; block += frameBlocks {
		if block%(spanBlocks/10) < frameBlocks {
			l.packs = append(l.packs, packRef{newObjectID(fixedID), keyRef{fixedID, 1, 9}})
			number, off = 0, headerSize
		}
		f := frameRef{pack: int32(len(l.packs) - 1), number: number, off: off, blocks: frameBlocks, zstd: true, stored: 10_000 + rnd.Uint32N(90_000)}
		l.frames = append(l.frames, f)
		l.pieces = append(l.pieces, piece{block: block, count: frameBlocks, frame: int32(len(l.frames) - 1)})
		number, off = number+1, f.end()
	}
	return l
}

// scatteredLeaf is what changing one block in every changes leaves in a span.
func scatteredLeaf(rnd *rand.Rand, every int) *leaf {
	l := &leaf{blocks: spanBlocks, packs: []packRef{{newObjectID(fixedID), keyRef{fixedID, 1, 9}}}}
	number, off := uint32(0), int64(headerSize)
	for block := int64(0); block < spanBlocks; block++ {
		if rnd.IntN(every) > 0 {
			continue
		}
		if n := len(l.frames); n == 0 || l.frames[n-1].blocks == sparseBlocks {
			if n > 0 {
				off = l.frames[n-1].end()
			}
			l.frames = append(l.frames, frameRef{number: number, off: off, zstd: true, stored: 8000 + rnd.Uint32N(16_000)})
			number++
		}
		f := &l.frames[len(l.frames)-1]
		l.pieces = append(l.pieces, piece{block: block, count: 1, frame: int32(len(l.frames) - 1), at: int32(f.blocks)})
		f.blocks++
	}
	return l
}

func storedLength(l *leaf) int {
	return len(compress(nil, l.append(nil, fixedID))) + tagSize
}

func TestMapIsSmall(t *testing.T) {
	rnd := newRand(t)
	dense := denseLeaf(rnd)
	per := float64(storedLength(dense)) / float64(len(dense.frames))
	t.Logf("%.2f bytes for each dense frame", per)
	if per > 3.5 {
		t.Errorf("a dense frame takes %.2f bytes of map, 3.5 are allowed", per)
	}
	scattered := scatteredLeaf(rnd, 100)
	per = float64(storedLength(scattered)) / float64(len(scattered.pieces))
	t.Logf("%.2f bytes for each scattered extent", per)
	if per > 3 {
		t.Errorf("a scattered extent takes %.2f bytes of map, 3 are allowed", per)
	}
}

func TestRootIsSmall(t *testing.T) {
	// 1 TiB with as many leaves as a row can have, in five packs.
	rnd := newRand(t)
	s := new(spans)
	var packs []*leafPack
	for range maxLeaves {
		packs = append(packs, &leafPack{id: newObjectID(layers.NewID()), where: inLeaves, key: keyRef{fixedID, 1, 9}, size: 20 << 20})
	}
	at := make([]packCursor, maxLeaves)
	for i := range int64(1024) {
		r := row{first: i * spanBlocks, blocks: spanBlocks}
		for j, p := range packs {
			leaf := leafRef{pack: p, number: at[j].number, off: headerSize + at[j].off, stored: 500 + rnd.Uint32N(30_000)}
			at[j].number, at[j].off = at[j].number+1, at[j].off+int64(leaf.stored)
			r.leaves = append(r.leaves, leaf)
		}
		s.rows = append(s.rows, r)
	}
	s.collectPacks()
	n := len(compress(nil, s.append(nil, fixedID)))
	t.Logf("%d bytes for 1 TiB", n)
	if n > rootBudget {
		t.Errorf("the spans of 1 TiB take %d bytes, %d are allowed", n, rootBudget)
	}
}

// vast is a volume of any size with a few blocks of data. It counts what is
// read of it.
type vast struct {
	size int64
	data map[int64]uint64 // by block: what it is filled with
	read *atomic.Int64
}

func (v *vast) Size() int64 { return v.size }

func (v *vast) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), v.size-off))
	clear(p[:n])
	for i := 0; i < n; i += 8 {
		at := off + int64(i)
		if seed := v.data[at/layers.BlockSize]; seed != 0 && i+8 <= n {
			binary.LittleEndian.PutUint64(p[i:], seed*uint64(at+1)*0x9e3779b97f4a7c15)
		}
	}
	v.read.Add(int64(n))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (v *vast) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, b := range slices.Sorted(maps.Keys(v.data)) {
			e := layers.Extent{Off: b * layers.BlockSize, Len: layers.BlockSize, Kind: layers.Data}.Clip(off, n)
			if e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

func newVast(size int64) *vast {
	return &vast{size: size, data: make(map[int64]uint64), read: new(atomic.Int64)}
}

// changed returns a layer of some blocks, and writes them.
func (v *vast) change(rnd *rand.Rand, blocks ...int64) *vast {
	c := newVast(v.size)
	for _, b := range blocks {
		v.data[b] = rnd.Uint64() | 1
		c.data[b] = 1
	}
	return c
}

// What a backup asks of the store, held to the request: a listing and the root
// beside its packs. The first one of a volume writes the volume's key. B3
func TestRequestsOfABackup(t *testing.T) {
	c := countRequests(object.NewMem())
	r := testRepo(t, c, true)
	r.packTarget = 8 << 20
	rnd := newRand(t)
	v := newVast(1 << 40)
	blocks := func(n int) (list []int64) {
		for range n {
			list = append(list, rnd.Int64N(v.size/layers.BlockSize))
		}
		return list
	}
	v.change(rnd, blocks(300)...)
	volume := layers.NewID()
	create := func(parent layers.ID, changes layers.Layer) (Backup, []string) {
		c.take()
		v.read.Store(0)
		b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: volume, Parent: parent, Source: v, Changes: changes})
		if err != nil {
			t.Fatal(err)
		}
		return b, c.take()
	}
	held := func(what string, seen []string, data, leaves, more int) {
		t.Helper()
		if got := count(seen, "put p/"); got != data || count(seen, "put m/") != leaves {
			t.Errorf("%s puts %d packs of data and %d of leaves, want %d and %d", what, got, count(seen, "put m/"), data, leaves)
		}
		if len(seen) != data+leaves+more {
			t.Errorf("%s takes %d requests for %d packs, want %d more: %q", what, len(seen), data+leaves, more, seen)
		}
	}
	full, seen := create(layers.ID{}, nil)
	held("the first backup", seen, 1, 0, 3)
	if full.Objects != 3 {
		t.Errorf("the first backup counts %d objects in %q, want pack, root and key", full.Objects, seen)
	}
	again, seen := create(layers.ID{}, nil)
	held("a full backup", seen, 1, 0, 2)
	if again.Objects != 2 {
		t.Errorf("a full backup counts %d objects in %q, want pack and root", again.Objects, seen)
	}

	small, seen := create(again.ID, v.change(rnd, blocks(50)...))
	held("a small increment", seen, 1, 0, 2)
	if small.Objects != 2 {
		t.Errorf("a small increment counts %d objects in %q, want pack and root", small.Objects, seen)
	}
	if got := v.read.Load(); got != small.Changed || got > 50*layers.BlockSize {
		t.Errorf("%d bytes were read for %d changed", got, small.Changed)
	}

	idle, seen := create(small.ID, newVast(v.size))
	held("a backup of no change", seen, 0, 0, 2)
	if idle.Objects != 1 || v.read.Load() != 0 {
		t.Errorf("a backup of no change counts %d objects, reads %d bytes, %q; want a root", idle.Objects, v.read.Load(), seen)
	}

	big, seen := create(idle.ID, v.change(rnd, blocks(4_000)...))
	packs := count(seen, "put p/")
	held("a large increment", seen, packs, 1, 2)
	if big.Objects != int64(packs+2) || packs < 2 || big.Objects > 4 {
		t.Errorf("a large increment counts %d objects in %d packs, leaves and a root", big.Objects, packs)
	}
	// B6: the count and the bytes are true.
	var stored int64
	for name, b := range contents(t, c.Store) {
		if strings.Contains(name, big.ID.String()[24:]) || strings.HasPrefix(name, "p/") || strings.HasPrefix(name, "m/") {
			session := string(big.ID[8:])
			if (name[1] == '/' && strings.Contains(name, "/"+hexOf(session))) || strings.HasSuffix(name, big.ID.String()) {
				stored += int64(len(b))
			}
		}
	}
	if stored != big.Stored {
		t.Errorf("%d bytes are stored, the backup says %d", stored, big.Stored)
	}

	c.take()
	if err := r.Delete(t.Context(), full.ID); err != nil {
		t.Fatal(err)
	}
	if seen := c.take(); len(seen) != 1 {
		t.Errorf("a delete takes the requests %q, want one", seen)
	}
}

// The first backup that a host makes after it opened the repository reads the
// parent's root and the volume's key.
func TestRequestsOfAColdBackup(t *testing.T) {
	store := object.NewMem()
	v := newVolume(1 << 20)
	v.write(0, []byte("one"))
	parent, err := v.backup(t.Context(), testRepo(t, store, true), layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	c := countRequests(store)
	r := hostOf(t, c)
	for _, want := range []struct {
		what string
		n    int
	}{{"the first of a host: list, root, key, and its own root", 4}, {"the next one", 2}} {
		c.take()
		if parent, err = v.backup(t.Context(), r, parent.ID); err != nil {
			t.Fatal(err)
		}
		if seen := c.take(); len(seen) != want.n {
			t.Errorf("an unchanged backup, %s, takes %d requests, want %d: %q", want.what, len(seen), want.n, seen)
		}
	}
}

func hexOf(s string) string {
	var id objectID
	copy(id[:], s)
	return id.String()[:2*len(s)]
}

func TestRootStaysSmallOverYears(t *testing.T) {
	// Each backup touches another span: the map would end with a pack of
	// leaves for each of them.
	store := object.NewMem()
	r := testRepo(t, store, false)
	rnd := newRand(t)
	v := newVast(1 << 40)
	r.rootBudget = 4 << 10
	volume, parent := layers.NewID(), layers.ID{}
	largest, rewritten := int64(0), false
	for i := range int64(300) {
		b, err := r.Create(t.Context(), Job{
			ID: layers.NewID(), Volume: volume, Parent: parent, Source: v,
			Changes: v.change(rnd, i*577%1024*spanBlocks+rnd.Int64N(spanBlocks)),
		})
		if err != nil {
			t.Fatal(err)
		}
		parent = b.ID
		root, err := r.openRoot(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		listed, _ := r.index.find(b.ID)
		largest = max(largest, listed.size)
		rewritten = rewritten || len(root.spans.packs) < int(i)/2
	}
	t.Logf("the largest root has %d bytes", largest)
	if limit := int64(r.rootBudget + 2<<10); largest > limit {
		t.Errorf("a root of 1 TiB has %d bytes, %d are allowed", largest, limit)
	}
	if !rewritten {
		t.Error("no leaves were merged: the test tests nothing")
	}
	l, err := r.Layer(t.Context(), parent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got, want := make([]byte, layers.BlockSize), make([]byte, layers.BlockSize)
	for block := range v.data {
		v.ReadAt(want, block*layers.BlockSize)
		if _, err := l.ReadAt(got, block*layers.BlockSize); err != nil || differ(got, want) >= 0 {
			t.Fatalf("block %d differs: %v", block, err)
		}
	}
}

// noise is a volume of bytes that do not shrink.
type noise struct{ size int64 }

func (n noise) Size() int64 { return n.size }

func (n noise) ReadAt(p []byte, off int64) (int, error) {
	x := uint64(off)*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	return len(p), nil
}

func (n noise) Extents(off, length int64) iter.Seq2[layers.Extent, error] {
	return flat{size: n.size}.Extents(off, length)
}

// forgetful keeps no packs of data.
type forgetful struct{ object.Store }

func (f forgetful) Put(ctx context.Context, name string, b []byte) error {
	if strings.HasPrefix(name, "p/") {
		return nil
	}
	return f.Store.Put(ctx, name, b)
}

func TestMemoryOfABackupIsBounded(t *testing.T) {
	r := testRepo(t, forgetful{object.NewMem()}, true)
	r.packTarget = packTarget
	// Without garbage: how much of that there is depends on what else is in use.
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	inUse() // what pools keep goes with the second collection
	before, peak, next := inUse(), uint64(0), int64(0)
	size := int64(320 << 20)
	_, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: noise{size}, Progress: func(done, _ int64) {
		if done < next {
			return
		}
		next = done + 16<<20
		now := inUse()
		peak = max(peak, now-min(now, before))
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Beside the packs, which lie in arenas: buffersMax of them and no more.
	t.Logf("at most %d MiB of heap for a backup of %d MiB", peak>>20, size>>20)
	if peak > 32<<20 {
		t.Errorf("a backup takes %d MiB of heap, 32 are allowed", peak>>20)
	}
}
