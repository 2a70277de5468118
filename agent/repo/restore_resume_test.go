package repo

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A keeping is a blank disk that loses, when its writer dies, everything that
// was written since the last point that was kept.
type keeping struct {
	s       *scattered
	mu      sync.Mutex
	kept    map[int64][]byte
	written map[int64][]byte
}

func (k *keeping) WriteAt(p []byte, off int64) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := 0; at < len(p); at += layers.BlockSize {
		k.written[(off+int64(at))/layers.BlockSize] = bytes.Clone(p[at:min(len(p), at+layers.BlockSize)])
	}
	return len(p), nil
}

func (k *keeping) WriteZeroes(off, n int64) error { return nil }

func (k *keeping) keep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for b, p := range k.written {
		k.kept[b] = p
	}
	clear(k.written)
}

// A tap lets so many requests for frames through, and no more: the process is
// dead to the store after that.
type tap struct {
	mu   sync.Mutex
	left int // below 0: any number
	gets int // that went through
}

func (w *tap) before(op, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if op != "get" || name[:2] != "p/" {
		return nil
	}
	if w.left == 0 {
		return errStopped
	}
	w.left--
	w.gets++
	return nil
}

// B15: cut off anywhere and gone on with from the last point, again and again,
// a restore is exact, and what was done before the point is not fetched again.
func TestRestoreGoesOn(t *testing.T) {
	s := newScattered(18) // three parts
	store := object.NewMem()
	var line tap
	r := testRepo(t, &objecttest.Hook{Store: store, Before: func(op, name string) error { return line.before(op, name) }}, true)
	r.packTarget = 64 << 10
	b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: s})
	if err != nil {
		t.Fatal(err)
	}
	line = tap{left: -1}
	whole := &keeping{s: s, kept: map[int64][]byte{}, written: map[int64][]byte{}}
	of := map[int]int{} // groups by part
	err = r.Restore(t.Context(), b.ID, whole, RestoreOptions{Blank: true, Checkpoint: func(p RestorePoint) error {
		if p.Of > 0 {
			of[p.Part] = p.Of
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	once, lives := line.gets, 0
	k := &keeping{s: s, kept: map[int64][]byte{}, written: map[int64][]byte{}}
	var point RestorePoint
	for {
		// How far a life gets is the scheduler's: the first group may be the last that is done.
		if lives++; lives > 10*once {
			t.Fatalf("no end after %d lives, at %+v", lives, point)
		}
		line = tap{left: 12}
		before := point.Groups
		for part := range point.Part {
			before += of[part]
		}
		last := point.Bytes
		err := r.Restore(t.Context(), b.ID, k, RestoreOptions{
			Blank: true,
			From:  point,
			Checkpoint: func(p RestorePoint) error {
				if p.Bytes < last || p.Bytes > s.size+layers.BlockSize {
					t.Errorf("point %+v after %d bytes", p, last)
				}
				k.keep()
				point, last = p, p.Bytes
				return nil
			},
			Progress: func(done, total int64) {
				if done > total || total != s.size {
					t.Errorf("progress %d of %d", done, total)
				}
			},
		})
		clear(k.written)
		if before+line.gets > once || err == nil && before+line.gets < once {
			t.Errorf("%d requests after a point with %d done, %d in all", line.gets, before, once)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
	}
	for _, block := range s.blocks {
		want := s.block(block)
		got := k.kept[block]
		if got == nil {
			got = zeroBlock[:]
		}
		if !bytes.Equal(got, want[:min(len(want), len(got))]) {
			t.Fatalf("block %d differs", block)
		}
	}
	if lives < 4 {
		t.Errorf("%d requests in only %d lives", once, lives)
	}
}

// A point of another backup, or of a version that groups otherwise, costs time
// and not data.
func TestRestoreFromAForeignPoint(t *testing.T) {
	s := newScattered(2)
	store := object.NewMem()
	r := testRepo(t, store, true)
	b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: s})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []RestorePoint{{Groups: 1, Of: 999}, {Groups: 5, Of: 1}, {Part: 40}, {Part: -1}} {
		w := &expecting{t: t, want: s}
		if err := r.Restore(t.Context(), b.ID, w, RestoreOptions{Blank: true, From: from}); err != nil {
			t.Fatal(err)
		}
		for _, block := range s.blocks {
			if _, got := w.got.Load(block); !got && block%31 != 0 {
				t.Fatalf("from %+v block %d was not restored", from, block)
			}
		}
	}
}
