package repo

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"varve/agent/object"
	"varve/layers"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: 1, and a new one if SEEDS is set")

// newRand prints its seed, so that a failure can be run again with -seed.
func newRand(t testing.TB) *rand.Rand {
	seed := firstSeed()
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// firstSeed is the one that was asked for, or 1: a change is not held up by what
// another did. make soak, which sets SEEDS, draws new ones.
func firstSeed() uint64 {
	if *seedFlag == 0 && os.Getenv("SEEDS") != "" {
		return uint64(time.Now().UnixNano()) >> 10
	}
	return max(*seedFlag, 1)
}

// cheap is a cost of argon2id for tests that are not about it.
var cheap = argonCost{passes: 1, memory: 8, threads: 1}

const secret = "correct horse battery staple"

// A volume is a model: bytes, and what changed since the last backup.
type volume struct {
	id      layers.ID
	bytes   []byte
	changed []layers.Kind // by block
	reads   int64         // bytes read by the backup
}

func newVolume(size int64) *volume {
	v := &volume{id: layers.NewID()}
	v.grow(size)
	v.forget()
	return v
}

func (v *volume) grow(size int64) {
	v.bytes = append(v.bytes, make([]byte, size-int64(len(v.bytes)))...)
	for int64(len(v.changed)) < blocksOf(size) {
		v.changed = append(v.changed, layers.Zero) // grown space is zero, and new
	}
}

// forget begins a new increment.
func (v *volume) forget() { clear(v.changed) }

func (v *volume) write(off int64, p []byte) {
	n := copy(v.bytes[off:], p)
	v.mark(off, int64(n), layers.Data)
}

func (v *volume) zero(off, n int64) {
	n = min(n, int64(len(v.bytes))-off)
	clear(v.bytes[off : off+n])
	for b := off / layers.BlockSize; b < blocksOf(off+n); b++ {
		kind := layers.Data
		if b*layers.BlockSize >= off && min((b+1)*layers.BlockSize, int64(len(v.bytes))) <= off+n {
			kind = layers.Zero
		}
		v.changed[b] = kind
	}
}

func (v *volume) mark(off, n int64, kind layers.Kind) {
	for b := off / layers.BlockSize; b < blocksOf(off+n); b++ {
		v.changed[b] = kind
	}
}

// source is the whole content; its extents are the blocks that are not zero.
func (v *volume) source() *content {
	kinds := make([]layers.Kind, len(v.changed))
	for b := range kinds {
		if block := v.block(b); !bytes.Equal(block, zeroBlock[:len(block)]) {
			kinds[b] = layers.Data
		}
	}
	return &content{bytes.Clone(v.bytes), kinds, &v.reads}
}

// changes is a partial layer, as a diff of two snapshots is.
func (v *volume) changes() *content {
	return &content{nil, append([]layers.Kind(nil), v.changed...), nil}
}

func (v *volume) block(b int) []byte {
	return v.bytes[b*layers.BlockSize : min((b+1)*layers.BlockSize, len(v.bytes))]
}

// content is a layers.Layer over a byte slice.
type content struct {
	bytes []byte
	kinds []layers.Kind
	reads *int64
}

func (c *content) Size() int64 { return int64(len(c.bytes)) }

func (c *content) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(c.bytes).ReadAt(p, off)
	return n, err
}

func (c *content) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for b, kind := range c.kinds {
			e := layers.Extent{Off: int64(b) * layers.BlockSize, Len: layers.BlockSize, Kind: kind}
			if c.bytes != nil {
				e = e.Clip(0, c.Size())
			}
			if e = e.Clip(off, n); kind != layers.Absent && e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// disk is a Writer over bytes that are not zero at first.
type disk struct{ bytes []byte }

func newDisk(size int) *disk { return &disk{bytes.Repeat([]byte{0xa5}, size)} }

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(d.bytes)) {
		return 0, errors.New("past the end")
	}
	return copy(d.bytes[off:], p), nil
}

func (d *disk) WriteZeroes(off, n int64) error {
	clear(d.bytes[off : off+n])
	return nil
}

// testRepo makes a repository with small packs.
func testRepo(t testing.TB, s object.Store, encrypted bool) *Repo {
	t.Helper()
	key := Key{}
	if encrypted {
		key.Passphrase = secret
	}
	r, err := Init(t.Context(), s, key, Params{NoEncryption: !encrypted, cost: cheap})
	if err != nil {
		t.Fatal(err)
	}
	r.packTarget = 256 << 10
	t.Cleanup(func() { r.Close() })
	return r
}

// backup makes an increment on the given parent, or a full one.
func (v *volume) backup(ctx context.Context, r *Repo, parent layers.ID) (Backup, error) {
	j := Job{ID: layers.NewID(), Volume: v.id, VolumeName: "data", Name: "nightly", Parent: parent, Boundary: layers.NewID(), Source: v.source()}
	if !parent.IsZero() {
		j.Changes = v.changes()
	}
	return r.Create(ctx, j)
}

// compare restores a backup and reads it as a layer.
func compare(t testing.TB, r *Repo, id layers.ID, want []byte) {
	t.Helper()
	d := newDisk(len(want))
	if err := r.Restore(t.Context(), id, d, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if at := differ(d.bytes, want); at >= 0 {
		t.Fatalf("restored backup %s differs at %d", id, at)
	}
	blank := &disk{make([]byte, len(want))}
	if err := r.Restore(t.Context(), id, blank, RestoreOptions{Blank: true}); err != nil {
		t.Fatal(err)
	}
	if at := differ(blank.bytes, want); at >= 0 {
		t.Fatalf("backup %s restored to a blank disk differs at %d", id, at)
	}
	l, err := r.Layer(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Size() != int64(len(want)) {
		t.Fatalf("layer of backup %s has %d bytes, want %d", id, l.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
	if err != nil {
		t.Fatal(err)
	}
	if at := differ(got, want); at >= 0 {
		t.Fatalf("layer of backup %s differs at %d", id, at)
	}
}

// differ returns the first offset at which a and b differ, or -1.
func differ(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return int64(i)
		}
	}
	return int64(min(len(a), len(b)))
}

// scribble changes a volume in some random way.
func (v *volume) scribble(rnd *rand.Rand) {
	size := int64(len(v.bytes))
	for range 1 + rnd.IntN(20) {
		off := rnd.Int64N(size)
		n := 1 + rnd.Int64N(min(size-off, 1<<(6+rnd.IntN(14))))
		switch rnd.IntN(5) {
		case 0:
			v.zero(off, n)
		case 1: // will not shrink
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			v.write(off, p)
		case 2: // will
			v.write(off, bytes.Repeat([]byte(fmt.Sprintf("%x", rnd.Uint32()))[:4], int(n/4)+1)[:n])
		case 3: // zeros that were written
			v.write(off, make([]byte, n))
		case 4: // a copy of what is elsewhere, block by block
			from := rnd.Int64N(size) &^ (layers.BlockSize - 1)
			v.write(off&^(layers.BlockSize-1), bytes.Clone(v.bytes[from:min(size, from+n+12*layers.BlockSize)]))
		}
	}
}

func TestModel(t *testing.T) {
	// B14, B15: whatever was written, zeroed and grown, each backup reads as
	// the volume was, from a full one on through many increments.
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("encrypted=%t", encrypted), func(t *testing.T) {
			rnd := newRand(t)
			store := object.NewMem()
			r := testRepo(t, store, encrypted)
			v := newVolume(1<<20 + rnd.Int64N(1<<21))
			images := make(map[layers.ID][]byte)
			var parent layers.ID
			for range 16 {
				v.scribble(rnd)
				if rnd.IntN(4) == 0 {
					v.grow(int64(len(v.bytes)) + rnd.Int64N(1<<20))
				}
				b, err := v.backup(t.Context(), r, parent)
				if err != nil {
					t.Fatal(err)
				}
				images[b.ID] = bytes.Clone(v.bytes)
				v.forget()
				if parent = b.ID; rnd.IntN(10) == 0 {
					parent = layers.ID{}
				}
			}
			again, err := Open(t.Context(), store, Key{Passphrase: map[bool]string{true: secret}[encrypted]})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			for id, want := range images {
				compare(t, again, id, want)
			}
		})
	}
}
