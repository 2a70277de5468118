package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

func TestMatcher(t *testing.T) {
	// Sums are letters; . is a block that the task does not have.
	type call struct {
		first int64
		sums  string
		want  []match
	}
	for name, calls := range map[string][]call{
		"a run":                 {{0, "abcdefghij", nil}, {40, "xabcdefghijx", []match{{run{41, 10}, 0}}}},
		"a run that is short":   {{0, "abcdefghij", nil}, {40, "xabcdefgx", nil}},
		"the shortest":          {{0, "abcdefghij", nil}, {40, "bcdefghi", []match{{run{40, 8}, 1}}}},
		"not in one task":       {{0, "abcdefghabcdefgh", nil}},
		"two":                   {{0, "abcdefgh", nil}, {40, "ijklmnop", nil}, {80, "ijklmnopabcdefgh", []match{{run{80, 8}, 40}, {run{88, 8}, 0}}}},
		"of two tasks":          {{0, "abcdefgh", nil}, {8, "ijklmnop", nil}, {80, "efghijklmn", []match{{run{80, 10}, 4}}}},
		"with a gap":            {{0, "abcdefghijkl", nil}, {80, "abcdefg.hijkl", nil}},
		"with a gap before it":  {{0, "abcd.efghijkl", nil}, {80, "abcdefghijkl", []match{{run{84, 8}, 5}}}},
		"the last of two":       {{0, "abcdefgh", nil}, {40, "abcdefgh", []match{{run{40, 8}, 0}}}, {80, "abcdefgh", []match{{run{80, 8}, 40}}}},
		"a block that is usual": {{0, "xxabcdefghixx", nil}, {40, "xxx", nil}, {80, "xxabcdefghixx", []match{{run{80, 13}, 0}}}},
		"two that would overlap": {
			{0, "abcdefgh", nil}, {40, "efghijklmnop", nil}, {80, "abcdefghijklmnop", []match{{run{80, 8}, 0}, {run{88, 8}, 44}}},
		},
		"two sums of one slot": {{0, "abcdefgh", nil}, {40, "abcd" + string(rune('e'+matchSlots)) + "fgh", nil}},
		"at the span's end":    {{spanBlocks - 10, "abcdefghij", nil}, {40, "abcdefghijk", []match{{run{40, 10}, spanBlocks - 10}}}},
		"all the same":         {{0, "xxxxxxxxxxxxx", nil}, {40, "xxxxxxxxxxxxx", []match{{run{40, 8}, 5}}}},
	} {
		var m matcher
		for i, c := range calls {
			m.enter(run{5 * spanBlocks, spanBlocks})
			var blocks []int64
			var sums []uint32
			for j, r := range c.sums {
				if r != '.' {
					blocks, sums = append(blocks, 5*spanBlocks+c.first+int64(j)), append(sums, uint32(r))
				}
			}
			for j := range c.want {
				c.want[j].block += 5 * spanBlocks
				c.want[j].from += 5 * spanBlocks
			}
			if got := m.match(nil, blocks, sums); !slices.Equal(got, c.want) {
				t.Errorf("%s, call %d: %v, want %v", name, i, got, c.want)
			}
		}
		m.enter(run{6 * spanBlocks, spanBlocks})
		var blocks []int64
		var sums []uint32
		for j, r := range strings.ReplaceAll(calls[0].sums, ".", "") {
			blocks, sums = append(blocks, 6*spanBlocks+100+int64(j)), append(sums, uint32(r))
		}
		if got := m.match(nil, blocks, sums); got != nil {
			t.Errorf("%s: %v in another span", name, got)
		}
	}
}

// doubled is a volume of noise of which most stands twice or more often, near
// and far, at places that are alike in nothing.
func doubled(rnd *rand.Rand, size int) *volume {
	v := newVolume(int64(size))
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(v.bytes[i:], rnd.Uint64())
	}
	blocks := int64(size / layers.BlockSize)
	for range blocks / 32 {
		from, n := rnd.Int64N(blocks), repeatLeast+rnd.Int64N(60)
		to := min(from+rnd.Int64N(200), blocks)
		copy(v.bytes[to*layers.BlockSize:], bytes.Clone(v.bytes[from*layers.BlockSize:min(blocks, from+n)*layers.BlockSize]))
	}
	v.mark(0, int64(size), layers.Data)
	return v
}

// framesOf are the sections of all packs of data.
func framesOf(t *testing.T, r *Repo) (frames []section) {
	t.Helper()
	for name, b := range contents(t, r.store) {
		id, ok := packOf(name)
		if !ok || id.where != inData {
			continue
		}
		h, err := parseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		var p checkedPack
		if _, err := p.parse(t.Context(), r, inData, packRef{id.id, h.key}, b); err != nil {
			t.Fatal(err)
		}
		for _, s := range p.sections {
			if s.kind == sectionFrame {
				frames = append(frames, s)
			}
		}
	}
	return frames
}

// count adds up the blocks of frames, and of their repeats.
func countBlocks(frames []section) (stored, repeated int64) {
	for i := range frames {
		stored += int64(frames[i].blocks)
		for _, r := range frames[i].repeats {
			repeated += r.count
		}
	}
	return stored, repeated
}

// What a pack has already is not stored again, and counts all the same; how the
// workers interleave changes nothing.
func TestRepeats(t *testing.T) {
	v := doubled(newRand(t), 4<<20+1000)
	for i, c := range v.bytes {
		v.bytes[i] = c & 15 // each frame shrinks, so that each is tried (trier)
	}
	var first []string
	for round := range 4 {
		r := testRepo(t, object.NewMem(), round > 0)
		r.packTarget = 1 << 20
		b, err := v.backup(t.Context(), r, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, r, b.ID, v.bytes)
		if report, err := r.Verify(t.Context(), b.ID, VerifyOptions{Level: Deep}); err != nil {
			t.Errorf("verify: %v, %v", err, report.Damage)
		}
		frames := framesOf(t, r)
		stored, repeated := countBlocks(frames)
		all := blocksOf(int64(len(v.bytes)))
		if stored+repeated != all || b.Logical != all*layers.BlockSize || repeated < all/8 {
			t.Errorf("%d blocks are stored and %d are repeats, of %d; the backup says %d bytes", stored, repeated, all, b.Logical)
		}
		if most := stored*layers.BlockSize + all*layers.BlockSize/50; b.Stored > most {
			t.Errorf("%d bytes are stored for %d blocks", b.Stored, stored)
		}
		var shapes []string
		for i := range frames {
			shapes = append(shapes, fmt.Sprint(frames[i].runs, frames[i].repeats))
		}
		slices.Sort(shapes)
		if round == 0 {
			first = shapes
		} else if !slices.Equal(shapes, first) {
			t.Errorf("round %d stored other frames than the first", round)
		}
	}
}

// A backup with repeats goes on after a cut at any Put, and stores again at
// most what was under way.
func TestResumeWithRepeats(t *testing.T) {
	v := doubled(newRand(t), 2<<20)
	const target = 256 << 10
	for packs, puts := 0, 1; ; puts++ {
		store := object.NewMem()
		testRepo(t, store, true)
		j := &Job{ID: layers.NewID(), Volume: v.id, Source: v.source()}
		cut, rest := &line{left: puts}, &line{left: -1}
		_, err := cut.try(t, store, j, target)
		if err != nil && !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if err == nil {
			if packs = cut.packs; packs < 5 {
				t.Errorf("the backup takes %d packs: too few to try", packs)
			}
		}
		b, again := rest.try(t, store, j, target)
		if again != nil {
			t.Fatalf("%d puts: %v", puts, again)
		}
		if packs > 0 && cut.packs+rest.packs > packs+buffersMax {
			t.Errorf("%d puts: %d packs, then %d, want %d in all", puts, cut.packs, rest.packs, packs)
		}
		if b.Logical != int64(len(v.bytes)) {
			t.Errorf("%d puts: it says %d bytes of data, want %d", puts, b.Logical, len(v.bytes))
		}
		r, openErr := Open(t.Context(), store, Key{Passphrase: secret})
		if openErr != nil {
			t.Fatal(openErr)
		}
		compare(t, r, b.ID, v.bytes)
		if report, err := r.Verify(t.Context(), b.ID, VerifyOptions{Level: Deep}); err != nil {
			t.Errorf("%d puts: %v: %v", puts, err, report)
		}
		if stored, repeated := countBlocks(framesOf(t, r)); stored+repeated < int64(len(v.bytes)/layers.BlockSize) || repeated == 0 {
			t.Errorf("%d puts: %d blocks and %d repeats", puts, stored, repeated)
		}
		r.Close()
		if err == nil {
			break
		}
	}
}

// Blocks with one checksum are not taken for one another.
func TestRepeatsAreCompared(t *testing.T) {
	v := doubled(newRand(t), frameBytes)
	// What a checksum does not see: a multiple of its polynomial, bits reflected.
	blind := []byte{1, 0, 0, 0, 0}
	binary.LittleEndian.PutUint32(blind[1:], 0)
	twin := bytes.Clone(v.bytes)
	poly := uint64(0x82f63b78)<<1 | 1
	for block := 0; block < len(twin); block += layers.BlockSize {
		for i := range 5 {
			twin[block+100+i] ^= byte(poly >> (8 * i))
		}
		a, b := v.bytes[block:block+layers.BlockSize], twin[block:block+layers.BlockSize]
		if sumOfBlock(a) != sumOfBlock(b) || bytes.Equal(a, b) {
			t.Fatal("the blocks differ in their sums")
		}
	}
	v.grow(2 * frameBytes)
	v.write(frameBytes, twin)
	r := testRepo(t, object.NewMem(), true)
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, r, b.ID, v.bytes)
	if _, repeated := countBlocks(framesOf(t, r)); repeated != 0 {
		t.Errorf("%d blocks count as repeats", repeated)
	}
}

// islands is the same noise at the front of each of two spans.
type islands struct{ noise []byte }

func (s islands) Size() int64 { return 2 * spanBlocks * layers.BlockSize }

func (s islands) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, s.noise[off%(spanBlocks*layers.BlockSize):]), nil
}

func (s islands) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for i := range int64(2) {
			e := layers.Extent{Off: i * spanBlocks * layers.BlockSize, Len: int64(len(s.noise)), Kind: layers.Data}
			if e = e.Clip(off, n); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// No frame crosses a span, by its repeats neither.
func TestRepeatsStayInTheirSpan(t *testing.T) {
	r := testRepo(t, object.NewMem(), true)
	r.packTarget = packTarget
	source := islands{doubled(newRand(t), 1<<20).bytes}
	b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: source})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range framesOf(t, r) {
		for _, again := range s.repeats {
			if again.block/spanBlocks != s.runs[0].block/spanBlocks {
				t.Errorf("a frame at block %d is repeated at block %d", s.runs[0].block, again.block)
			}
		}
	}
	if report, err := r.Verify(t.Context(), b.ID, VerifyOptions{Level: Deep}); err != nil {
		t.Errorf("verify: %v, %v", err, report.Damage)
	}
}

// What verification says of a map that names blocks where they are not.
func TestFrameHolds(t *testing.T) {
	s := section{kind: sectionFrame, blocks: 6, runs: []run{{10, 4}, {20, 2}}, repeats: []repeat{{run{30, 3}, 2}}}
	pack := &checkedPack{frames: 1 << 20, sections: []section{s}, offsets: []int64{headerSize}}
	for at, holds := range map[int32]bool{1: false, 2: true, 3: false} {
		w := &wanted{frame: frameRef{off: headerSize, blocks: 6}, pieces: []piece{{block: 30, count: 3, at: at}}}
		if err := pack.compare(w, Map); holds != (err == nil) || !holds && !errors.Is(err, ErrCorrupt) {
			t.Errorf("a map with block 30 at %d: %v", at, err)
		}
	}
	for at, blocks := range [][]int64{{10}, {11}, {12, 30}, {13, 31}, {20, 32}, {21}, {}, {}} {
		for block := range int64(40) {
			if got, want := s.holds(block, int64(at)), slices.Contains(blocks, block); got != want {
				t.Errorf("block %d at %d: %t, want %t", block, at, got, want)
			}
		}
	}
}

// What a trailer says of repeats lies within its frame and the volume.
func TestTrailerRefusesRepeats(t *testing.T) {
	trailer := func(repeats ...repeat) []byte {
		return appendTrailer(nil, fixedID, []section{{kind: sectionFrame, blocks: 4, stored: 4*layers.BlockSize + tagSize, runs: []run{{10, 4}}, repeats: repeats}})
	}
	for what, b := range map[string][]byte{
		"a place behind the frame": trailer(repeat{run{100, 1}, 4}),
		"one that ends behind it":  trailer(repeat{run{100, 3}, 2}),
		"one of no blocks":         trailer(repeat{run{100, 0}, 2}),
		"before the volume":        trailer(repeat{run{-1, 2}, 1}),
		"behind all volumes":       trailer(repeat{run{maxBlocks + 1, 2}, 1}),
		"the second of two":        trailer(repeat{run{100, 2}, 1}, repeat{run{200, 2}, 3}),
		"more than there can be":   binary.AppendUvarint(trailer(repeat{run{100, 1}, 0})[:len(trailer())], 1<<40),
	} {
		if _, sections, err := parseTrailer(b); err == nil {
			t.Errorf("%s: %+v", what, sections)
		}
	}
	if _, sections, err := parseTrailer(trailer(repeat{run{0, 4}, 0}, repeat{run{maxBlocks, 1}, 3})); err != nil || len(sections[0].repeats) != 2 {
		t.Errorf("the first block and the last: %+v, %v", sections, err)
	}
}

// A leaf names no frame that was stored before its own: a match that would have
// it do so is not taken.
func TestRepeatOfAnotherLeaf(t *testing.T) {
	w := &writer{root: new(root), leaf: &leaf{first: spanBlocks, blocks: spanBlocks}}
	key := &volumeKey{ref: keyRef{fixedID, firstEpoch, 1}, suite: suiteOpen}
	w.data.begin(inData, objectID{1}, fixedID, key, nil)
	add := func(r run) {
		w.data.add(make([]byte, r.count*layers.BlockSize), section{kind: sectionFrame, blocks: uint8(r.count), runs: []run{r}})
	}
	add(run{0, 32})
	add(run{spanBlocks, 32})
	w.leaf.add(packRef{objectID{1}, key.ref}, frameRef{number: 1, blocks: 32}, []run{{spanBlocks, 32}})
	if w.repeat([]match{{run{spanBlocks + 50, 8}, 8}}) || len(w.leaf.pieces) != 1 || len(w.data.repeats) != 0 {
		t.Errorf("blocks of another span are repeated: %+v", w.leaf.pieces)
	}
	want := piece{block: spanBlocks + 50, count: 8, frame: 0, at: 3}
	if !w.repeat([]match{{run{spanBlocks + 50, 8}, spanBlocks + 3}}) || len(w.leaf.pieces) != 2 || w.leaf.pieces[1] != want {
		t.Errorf("blocks of the same span: %+v, want %+v", w.leaf.pieces, want)
	}
}

// A pack with as many repeats as may be is closed, and what it has is stored
// again: nothing is a repeat of blocks in a pack that is on its way.
func TestRepeatsOfAPackAreBounded(t *testing.T) {
	w := &writer{root: new(root), leaf: &leaf{blocks: spanBlocks}, up: newUploader(t.Context(), object.NewMem())}
	defer w.up.close()
	buf, err := w.up.buffer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := &volumeKey{ref: keyRef{fixedID, firstEpoch, 1}, suite: suiteOpen}
	w.data.begin(inData, objectID{1}, fixedID, key, buf)
	w.data.add(make([]byte, 32*layers.BlockSize), section{kind: sectionFrame, blocks: 32, runs: []run{{0, 32}}})
	w.leaf.add(packRef{objectID{1}, key.ref}, frameRef{blocks: 32}, []run{{0, 32}})
	for i := range int64(repeatsMax) {
		w.data.repeats = append(w.data.repeats, storedRepeat{repeat: repeat{run{100 + i, 1}, 0}})
	}
	again := []match{{run{spanBlocks - 100, 8}, 0}}
	if !w.repeat(again) || w.data.sealer == nil {
		t.Error("a pack with room for one more is closed")
	}
	if w.repeat(again) || w.data.sealer != nil || len(w.packs) != 1 {
		t.Errorf("a pack with %d repeats takes more", len(w.data.repeats))
	}
	if err := w.up.wait(); err != nil {
		t.Fatal(err)
	}
}
