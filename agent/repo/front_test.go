package repo

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"varve/layers"
)

// mixedFrame has a zstd block of each kind: one that shrinks, one of a single
// byte, one that does not shrink, one that shrinks again.
func mixedFrame(t testing.TB) []byte {
	rnd := newRand(t)
	text := make([]byte, frameBytes)
	for i := range text {
		switch i / zstdBlock {
		case 1:
			text[i] = 'x'
		case 2:
			text[i] = byte(rnd.Uint32())
		default:
			text[i] = "abcdefgh"[rnd.IntN(8)]
		}
	}
	return text
}

// The first bytes of a frame come without the rest, from either level.
func TestExpandFront(t *testing.T) {
	text := mixedFrame(t)
	for _, level := range []Compression{Fastest, Default} {
		for _, total := range []int{frameBytes, frameBytes - layers.BlockSize, 2*zstdBlock + layers.BlockSize, 2 * zstdBlock} {
			stored := level.compress(nil, text[:total])
			before := bytes.Clone(stored)
			for need := layers.BlockSize; need <= total; need += layers.BlockSize {
				front, ok := expandFront(stored, need, total)
				if want := (need + zstdBlock - 1) / zstdBlock * zstdBlock; want >= total {
					if ok {
						t.Errorf("%v: %d of %d bytes: it saves nothing", level, need, total)
					}
				} else if !ok || len(front) != want || !bytes.Equal(front, text[:want]) {
					t.Errorf("%v: %d of %d bytes: %d, %v, or others; want %d", level, need, total, len(front), ok, want)
				}
			}
			if !bytes.Equal(stored, before) {
				t.Errorf("%v: what %d bytes are expanded from was changed", level, total)
			}
		}
	}
}

// What is not as we write it is left to whoever expands all of it: other blocks,
// a checksum, a cut.
func TestExpandFrontRefuses(t *testing.T) {
	text := mixedFrame(t)
	stored := compress(nil, text)
	whole := 0
	for n := 0; n < len(stored); n++ {
		front, ok := expandFront(stored[:n], zstdBlock, frameBytes)
		if ok && !bytes.Equal(front, text[:zstdBlock]) {
			t.Fatalf("cut at %d: other bytes", n)
		}
		if ok { // and so on: what comes later is not looked at, and takes long
			if whole++; whole > 100 {
				n += 499
			}
		}
	}
	if whole < 100 {
		t.Errorf("the front is there in %d cuts of %d", whole, len(stored))
	}
	if _, ok := expandFront(nil, 1, frameBytes); ok {
		t.Error("of nothing")
	}
	// A short text with the claim that it is long: its only block is the last.
	if _, ok := expandFront(compress(nil, text[:layers.BlockSize]), 1, frameBytes); ok {
		t.Error("of a frame of one block")
	}
	summed := bytes.Clone(stored)
	summed[4] |= 1 << 2
	if _, ok := expandFront(summed, 1, frameBytes); ok {
		t.Error("of a frame with a checksum")
	}
}

// Small reads of a frame, in whatever order, take one request and give what all
// of it has; the cache knows what it holds. // B15
func TestSmallReads(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("encrypted=%v", encrypted), func(t *testing.T) {
			s := newSample(t, encrypted)
			c := countRequests(storeOf(t, s.objects))
			r, err := Open(t.Context(), c, Key{Passphrase: map[bool]string{true: secret}[encrypted]})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			l, err := r.Layer(t.Context(), s.last)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			rnd := newRand(t)
			p := make([]byte, layers.BlockSize)
			c.take()
			for range 2000 {
				off := rnd.Int64N(int64(len(s.image)))
				n, err := l.ReadAt(p[:1+rnd.IntN(len(p))], off)
				if err != nil && err != io.EOF {
					t.Fatal(err)
				}
				if !bytes.Equal(p[:n], s.image[off:off+int64(n)]) {
					t.Fatalf("%d bytes at %d: others", n, off)
				}
			}
			frames := make(map[sectionKey]bool)
			var held int64
			for key, e := range r.cache.slots {
				switch v := e.value.(type) {
				case *keptFrame:
					frames[key] = true
					held += v.memory()
				case *leaf:
					held += v.memory()
				}
			}
			leaves := len(l.root.spans.rows[0].leaves)
			if got := c.take(); len(got) != leaves+len(frames) || len(frames) == 0 {
				t.Errorf("%d leaves and %d frames: %q", leaves, len(frames), got)
			}
			if held != r.cache.used {
				t.Errorf("the cache holds %d bytes, and counts %d", held, r.cache.used)
			}
		})
	}
}

// The first small read of a frame expands a part of it, the next one that needs
// more expands all; both are right.
func TestFrameIsExpandedAsNeeded(t *testing.T) {
	text := mixedFrame(t)
	v := newVolume(int64(len(text)))
	copy(v.bytes, text)
	v.mark(0, int64(len(text)), layers.Data)
	store := storeOf(t, nil)
	w := testRepo(t, store, true)
	b, err := v.backup(t.Context(), w, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held := func() int {
		for _, e := range r.cache.slots {
			if k, ok := e.value.(*keptFrame); ok {
				return len(k.blocks)
			}
		}
		return 0
	}
	p := make([]byte, layers.BlockSize)
	for _, step := range []struct{ block, held int }{{9, 2 * zstdBlock}, {0, 2 * zstdBlock}, {15, 2 * zstdBlock}, {16, frameBytes}, {31, frameBytes}} {
		off := step.block * layers.BlockSize
		if _, err := l.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, text[off:off+len(p)]) {
			t.Fatalf("block %d: %v, or other bytes", step.block, err)
		}
		if got := held(); got != step.held {
			t.Errorf("after block %d the cache has %d bytes of the frame, want %d", step.block, got, step.held)
		}
	}
}
