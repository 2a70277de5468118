package layers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// S1, A1: writers, readers, flushes, snapshots, deletions, merges, checks and
// growing side by side. Each writer owns every fourth block and writes its count
// there, so a snapshot holds, for each block, what was there when it began or
// something newer, and no block is ever half written.
func TestConcurrent(t *testing.T) {
	seed := testSeed(t)
	dir := filepath.Join(t.TempDir(), "v")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const blocks, writers = 512, 4
	tune := smallTuning
	tune.background = true
	if err := createVolume(osDisk{dir}, NewID(), blocks*BlockSize, tune); err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(osDisk{dir}, Options{}, tune)
	if err != nil {
		t.Fatal(err)
	}

	var done [blocks]atomic.Uint64 // the last count that was written to a block and acknowledged
	stop := make(chan struct{})
	var wg sync.WaitGroup
	runs := uint64(0)
	run := func(f func(r *rand.Rand) error) {
		runs++
		r := rand.New(rand.NewPCG(seed, runs))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for w := range writers {
		run(func(r *rand.Rand) error {
			b := r.IntN(blocks/writers)*writers + w
			next := done[b].Load() + 1
			if r.IntN(50) == 0 {
				if err := v.WriteZeroes(int64(b)*BlockSize, BlockSize); err != nil {
					return err
				}
			}
			if _, err := v.WriteAt(countBlock(next), int64(b)*BlockSize); err != nil {
				return err
			}
			done[b].Store(next)
			if r.IntN(20) == 0 {
				return v.Flush()
			}
			return nil
		})
	}
	run(func(r *rand.Rand) error {
		b := r.IntN(blocks)
		before := done[b].Load()
		return readCount(v, b, before, written)
	})
	run(func(*rand.Rand) error { return sound(v) })
	run(func(r *rand.Rand) error {
		for _, err := range v.Depths(ID{}, 0, v.Size()) {
			if err != nil {
				return err
			}
		}
		list := v.Boundaries()
		if len(list) == 0 {
			return nil
		}
		for _, err := range v.Changes(list[r.IntN(len(list))].ID, ID{}, 0, v.Size()) {
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be deleted meanwhile
				return err
			}
		}
		return nil
	})
	run(func(r *rand.Rand) error { return v.Grow(v.Size() + sectorSize) })

	var ids []ID
	r := rand.New(rand.NewPCG(seed, 99))
	for range 60 {
		var before [blocks]uint64
		for b := range before {
			before[b] = done[b].Load()
		}
		id := NewID()
		if err := v.Snapshot(id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		w, err := v.View(id)
		if err != nil {
			t.Fatal(err)
		}
		if len(ids) > 4 {
			i := r.IntN(len(ids))
			if err := v.DeleteSnapshot(ids[i], r.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
			ids = append(ids[:i], ids[i+1:]...)
		}
		for b := range before {
			if err := readCount(w, b, before[b], sealed); err != nil {
				t.Error("snapshot: ", err)
				break
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	for b := range done {
		if err := readCount(v, b, done[b].Load(), settled); err != nil {
			t.Error(err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err = openVolume(osDisk{dir}, Options{}, tune); err != nil {
		t.Fatal(err)
	}
	for b := range done {
		if err := readCount(v, b, done[b].Load(), settled); err != nil {
			t.Error("reopened: ", err)
		}
	}
	if err := errors.Join(v.tidy(), sound(v), v.Close()); err != nil {
		t.Error(err)
	}
}

// countBlock returns a block that is full of n.
func countBlock(n uint64) []byte {
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], n)
	return bytes.Repeat(word[:], BlockSize/8)
}

// How a block that is read may be beside the writes.
const (
	settled = iota // nobody writes
	sealed         // written when it was sealed: whole, and zeros at worst
	written        // being written now: the halves may differ
)

// readCount checks that a block holds a count that is at least least.
func readCount(r io.ReaderAt, b int, least uint64, how int) error {
	p := make([]byte, BlockSize)
	if _, err := r.ReadAt(p, int64(b)*BlockSize); err != nil {
		return err
	}
	got := binary.LittleEndian.Uint64(p)
	old := got < least && (got != 0 || how == settled)
	torn := !bytes.Equal(p, countBlock(got)) && how != written
	if old || torn {
		return fmt.Errorf("block %d holds %d (torn: %v), want at least %d", b, got, torn, least)
	}
	return nil
}

// Flushes that wait together share a commit, and one that begins later does not
// return with it.
func TestCommitterShares(t *testing.T) {
	var c committer
	c.done.L = &c.mu
	begun, release := make(chan struct{}), make(chan struct{})
	var commits atomic.Int32
	commit := func() error {
		if commits.Add(1) == 1 {
			close(begun)
			<-release
		}
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.share(commit) })
	<-begun
	for range 8 {
		wg.Go(func() { c.share(commit) })
	}
	close(release)
	wg.Wait()
	if n := commits.Load(); n < 2 || n > 9 {
		t.Errorf("%d commits for a first flush and eight later ones", n)
	}
}

// S5, V7: reverts, clones, deletions, checks and figures beside writers and
// readers. Every snapshot, and every clone of it, reads at the end what it read
// when it was taken.
func TestConcurrentTree(t *testing.T) {
	seed := testSeed(t)
	base := t.TempDir()
	const blocks = 512
	tune := smallTuning
	tune.background = true
	create := func(name string) osDisk {
		d := osDisk{filepath.Join(base, name)}
		if err := os.Mkdir(d.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := create("v")
	if err := createVolume(d, NewID(), blocks*BlockSize, tune); err != nil {
		t.Fatal(err)
	}
	open := func(d osDisk) *Volume {
		v, err := openVolume(d, Options{}, tune)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := open(d)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, f := range []func(r *rand.Rand) error{
		func(r *rand.Rand) error {
			_, err := v.WriteAt(countBlock(r.Uint64()), r.Int64N(blocks)*BlockSize)
			return err
		},
		func(r *rand.Rand) error { return v.WriteZeroes(r.Int64N(blocks)*BlockSize, BlockSize) },
		func(r *rand.Rand) error {
			_, err := v.ReadAt(make([]byte, 8*BlockSize), r.Int64N(blocks-8)*BlockSize)
			return err
		},
		func(r *rand.Rand) error { return v.Flush() },
		func(*rand.Rand) error {
			_, err := v.Exclusive()
			v.Boundaries()
			v.Usage()
			return err
		},
		func(*rand.Rand) error { return sound(v) },
	} {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}

	read := func(v *Volume, id ID) []byte {
		w, err := v.View(id)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return content(t, w)
	}
	want := map[ID][]byte{}
	var ids []ID
	note := func(id ID) { ids, want[id] = append(ids, id), read(v, id) }
	r := rand.New(rand.NewPCG(seed, 99))
	pick := func() int { return r.IntN(len(ids)) }
	note(takeSnapshot(t, v))
	for round := range 40 {
		switch r.IntN(4) {
		case 0:
			safety := NewID()
			if err := v.Revert(ids[pick()], safety); err != nil {
				t.Fatal(err)
			}
			note(safety)
		case 1:
			i := pick()
			cd := create(fmt.Sprint(round))
			if err := v.cloneTo(cd, NewID(), ids[i]); err != nil {
				t.Fatal(err)
			}
			c := open(cd)
			if got := content(t, c); !bytes.Equal(got, want[ids[i]]) {
				t.Errorf("a clone differs from its snapshot at %d", differ(got, want[ids[i]]))
			}
			if _, err := c.WriteAt(countBlock(1), 0); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if r.IntN(2) == 0 {
				if err := Remove(cd.dir); err != nil {
					t.Fatal(err)
				}
			}
		default:
			note(takeSnapshot(t, v))
		}
		if len(ids) > 5 {
			i := pick()
			if err := v.DeleteSnapshot(ids[i], r.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
			ids = append(ids[:i], ids[i+1:]...)
		}
	}
	close(stop)
	wg.Wait()
	mustTidy(t, v)
	for _, id := range ids {
		if got := read(v, id); !bytes.Equal(got, want[id]) {
			t.Errorf("snapshot %s differs at %d from what it was", id, differ(got, want[id]))
		}
	}
	live := content(t, v)
	if err := errors.Join(sound(v), v.Close()); err != nil {
		t.Fatal(err)
	}
	v = open(d)
	if got := content(t, v); !bytes.Equal(got, live) {
		t.Errorf("opened again, the volume differs at %d", differ(got, live))
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}
