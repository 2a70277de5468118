package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A line is a store that breaks at a Put and stays broken, as for a process
// that is killed: nothing is cleaned up.
type line struct {
	mu     sync.Mutex
	left   int // Puts that still go through; below 0: any number
	broken bool
	packs  int // Puts of packs of data that went through
}

func (l *line) before(op, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return errStopped
	}
	if op == "put" {
		if l.left == 0 {
			l.broken = true
			return errStopped
		}
		l.left--
		if strings.HasPrefix(name, "p/") {
			l.packs++
		}
	}
	return nil
}

// try makes the job's backup over a line that breaks after so many Puts, and
// returns how many packs of data went through.
func (l *line) try(t *testing.T, store object.Store, j *Job, packTarget int) (Backup, error) {
	t.Helper()
	r, err := Open(t.Context(), &objecttest.Hook{Store: store, Before: l.before}, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packTarget = packTarget
	j.Checkpoint = func(c Checkpoint) error {
		j.Resume = c
		return nil
	}
	return r.Create(t.Context(), *j)
}

// wantOnlyNeeded expects that the store has of a backup what the backup says
// that it added, and no more: B6, B19. The first of a volume added its key.
func wantOnlyNeeded(t *testing.T, store object.Store, b Backup, firstOf bool) {
	t.Helper()
	var count, stored int64
	session := fmt.Sprintf("%x", b.ID[8:])
	for name, content := range contents(t, store) {
		own := strings.HasSuffix(name, b.ID.String()) && strings.Contains(name, "/b/") || strings.Contains(name, "/"+session)
		if own || strings.Contains(name, "/k/") && firstOf {
			count, stored = count+1, stored+int64(len(content))
		}
	}
	if count != b.Objects || stored != b.Stored {
		t.Errorf("the store has %d objects of %d bytes of the backup, which says %d of %d", count, stored, b.Objects, b.Stored)
	}
}

// A7, B5: cut off at any Put, a backup goes on: it stores again at most what
// was under way, and is as if it had never been cut off.
func TestResume(t *testing.T) {
	store, _, v, parent, before := crashCase(t)
	objects := contents(t, store)
	const target = 64 << 10
	for _, full := range []bool{false, true} {
		var packs int
		for puts := 1; ; puts++ {
			store := storeOf(t, objects)
			j := &Job{ID: layers.NewID(), Volume: v.id, Parent: parent, Source: v.source(), Changes: v.changes()}
			if full {
				j.Volume, j.Parent, j.Changes = layers.NewID(), layers.ID{}, nil
			}
			cut := &line{left: puts}
			b, err := cut.try(t, store, j, target)
			if err != nil && !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			whole, late := err == nil, j.Resume.Root != "" // a late root needs its leaves
			if whole {
				packs = cut.packs
			}
			rest := &line{left: -1}
			if b, err = rest.try(t, store, j, target); err != nil {
				t.Fatalf("%d puts: %v", puts, err)
			}
			if again := rest.packs; whole && again > 0 {
				t.Errorf("a backup that is there was made again: %d packs", again)
			}
			// What is under way beside the pack that broke the line.
			if packs > 0 && cut.packs+rest.packs > packs+buffersMax {
				t.Errorf("%d puts: %d packs, then %d, want %d in all", puts, cut.packs, rest.packs, packs)
			}
			r, err := Open(t.Context(), store, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, r, b.ID, v.bytes)
			if !full {
				compare(t, r, parent, before)
			}
			if !full && !late {
				wantOnlyNeeded(t, store, b, false)
			}
			if report, err := r.Verify(t.Context(), b.ID, VerifyOptions{Level: Deep}); err != nil {
				t.Errorf("%d puts: %v: %v", puts, err, report)
			}
			r.Close()
			if whole {
				if packs < 5 {
					t.Errorf("the backup takes %d packs: too few to try", packs)
				}
				break
			}
		}
	}
}

// The number of packs that a cut costs is what was under way.
func TestResumeStoresLittleAgain(t *testing.T) {
	s := newScattered(6)
	whole := &line{left: -1}
	store := object.NewMem()
	testRepo(t, store, true)
	j := &Job{ID: layers.NewID(), Volume: layers.NewID(), Source: s}
	if _, err := whole.try(t, store, j, 96<<10); err != nil {
		t.Fatal(err)
	}
	for puts := whole.packs / 3; puts < whole.packs; puts += whole.packs / 3 {
		store := object.NewMem()
		testRepo(t, store, true)
		cut, rest := &line{left: puts}, &line{left: -1}
		j := &Job{ID: layers.NewID(), Volume: layers.NewID(), Source: s}
		if _, err := cut.try(t, store, j, 96<<10); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		s.reads.Store(0)
		b, err := rest.try(t, store, j, 96<<10)
		if err != nil {
			t.Fatal(err)
		}
		if sum := cut.packs + rest.packs; sum > whole.packs+buffersMax {
			t.Errorf("%d packs and %d after the cut, the whole backup takes %d", cut.packs, rest.packs, whole.packs)
		}
		// Blocks of zeros are in no pack, so they are read again.
		if read := s.reads.Load(); read > s.data()/20+s.data()*int64(rest.packs+1)/int64(whole.packs) {
			t.Errorf("%d of %d bytes were read for %d of %d packs", read, s.data(), rest.packs, whole.packs)
		}
		s.compare(t, store, b.ID)
		wantOnlyNeeded(t, store, b, true)
	}
}

// Cut off again and again, with packs lost between as pruning would take them
// once the session has grown too old, a backup still ends whole.
func TestResumeAgainAndAgain(t *testing.T) {
	rnd := newRand(t)
	s := newScattered(6)
	store := object.NewMem()
	testRepo(t, store, true)
	j := &Job{ID: layers.NewID(), Volume: layers.NewID(), Source: s}
	for tries := 0; ; tries++ {
		cut := &line{left: 1 + rnd.IntN(12)}
		b, err := cut.try(t, store, j, 96<<10)
		if err == nil {
			if tries < 4 {
				t.Errorf("only %d tries", tries)
			}
			s.compare(t, store, b.ID)
			return
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if rnd.IntN(3) == 0 {
			var packs []string
			for name := range contents(t, store) {
				if strings.HasPrefix(name, "p/") {
					packs = append(packs, name)
				}
			}
			if len(packs) > 0 {
				slices.Sort(packs)
				lost := packs[rnd.IntN(len(packs))]
				if rnd.IntN(2) == 0 {
					store.Delete(t.Context(), lost)
				} else {
					store.Put(t.Context(), lost, []byte("damaged"))
				}
			}
		}
	}
}

// The daemon dies when the root is there, but before it knows.
func TestResumeOfACommittedBackup(t *testing.T) {
	store, _, v, parent, _ := crashCase(t)
	j := &Job{ID: layers.NewID(), Volume: v.id, Parent: parent, Source: v.source(), Changes: v.changes()}
	first, err := (&line{left: -1}).try(t, store, j, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	objects := len(contents(t, store))
	rest := &line{}
	again, err := rest.try(t, store, j, 64<<10)
	if err != nil || again.ID != first.ID || again.Stored != first.Stored || len(contents(t, store)) != objects {
		t.Errorf("%+v, %v; want %+v, and nothing written", again, err, first)
	}
	if err := (func() error { j.Resume = Checkpoint{}; _, err := rest.try(t, store, j, 64<<10); return err })(); err == nil {
		t.Error("a backup was made a second time")
	}
}

// The parent goes while the backup waits: it is made as a full one, of what
// was stored and the rest.
func TestResumeWithoutItsParent(t *testing.T) {
	store, r, v, parent, _ := crashCase(t)
	j := &Job{ID: layers.NewID(), Volume: v.id, Parent: parent, Source: v.source(), Changes: v.changes()}
	cut := &line{left: 6}
	if _, err := cut.try(t, store, j, 64<<10); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), parent); err != nil {
		t.Fatal(err)
	}
	if _, err := (&line{left: -1}).try(t, store, j, 64<<10); !errors.Is(err, ErrParentGone) {
		t.Fatalf("%v, want that the parent is gone", err)
	}
	j.Parent, j.Changes = layers.ID{}, nil
	rest := &line{left: -1}
	b, err := rest.try(t, store, j, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, r, b.ID, v.bytes)
	wantOnlyNeeded(t, store, b, false)
}

// B19: a backup that is given up leaves nothing, wherever it was cut off.
func TestDiscard(t *testing.T) {
	store, _, v, parent, before := crashCase(t)
	objects := contents(t, store)
	for puts := 0; ; puts++ {
		store := storeOf(t, objects)
		j := &Job{ID: layers.NewID(), Volume: v.id, Parent: parent, Source: v.source(), Changes: v.changes()}
		_, err := (&line{left: puts}).try(t, store, j, 64<<10)
		if err == nil {
			return
		}
		r, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := r.Discard(t.Context(), j.ID, j.Resume); err != nil {
				t.Fatal(err)
			}
		}
		for name := range contents(t, store) {
			_, old := objects[name]
			if late := j.Resume.Root != "" && !strings.HasPrefix(name, "s/") && !strings.Contains(name, "/b/"); !old && !late {
				t.Errorf("%d puts: %s is left", puts, name)
			}
		}
		compare(t, r, parent, before)
		r.Close()
	}
}

// A refused checkpoint stops the backup before anything is stored under a name
// that nobody knows.
func TestCheckpointComesFirst(t *testing.T) {
	_, _, v, _, _ := crashCase(t)
	for refused := 1; refused < 6; refused++ {
		store := object.NewMem()
		r := testRepo(t, store, false)
		r.packTarget = 64 << 10
		var known Checkpoint
		calls := 0
		j := Job{ID: layers.NewID(), Volume: v.id, Source: v.source()}
		j.Checkpoint = func(c Checkpoint) error {
			if calls++; calls == refused {
				return errStopped
			}
			known = c
			return nil
		}
		if _, err := r.Create(t.Context(), j); err != nil && !errors.Is(err, errStopped) {
			t.Fatal(err)
		} else if err == nil {
			if refused < 4 {
				t.Errorf("only %d checkpoints", calls)
			}
			return
		}
		names := append(known.names(j.ID), "repo")
		for name := range contents(t, store) {
			if !slices.Contains(names, name) {
				t.Errorf("checkpoint %d refused: %s is there and not known", refused, name)
			}
		}
	}
}

// A scattered is a layer of several spans: a few blocks here and there, a
// dense part, and blocks of zeros that claim to be data.
type scattered struct {
	size   int64
	blocks []int64 // with data, ascending
	reads  counter
}

type counter struct {
	mu sync.Mutex
	n  int64
}

func (c *counter) Store(n int64) { c.mu.Lock(); c.n = n; c.mu.Unlock() }
func (c *counter) add(n int64)   { c.mu.Lock(); c.n += n; c.mu.Unlock() }
func (c *counter) Load() int64   { c.mu.Lock(); defer c.mu.Unlock(); return c.n }

func newScattered(spans int64) *scattered {
	s := &scattered{size: spans*spanBlocks*layers.BlockSize - 1000}
	rnd := rand.New(rand.NewPCG(7, 7))
	for span := range spans {
		for b := span * spanBlocks; b < (span+1)*spanBlocks && len(s.blocks) < 1<<12; b += 1 + rnd.Int64N(spanBlocks/60) {
			s.blocks = append(s.blocks, b)
			for span == 2 && b%5 == 0 && len(s.blocks)%90 != 0 {
				b++
				s.blocks = append(s.blocks, b)
			}
		}
	}
	s.blocks = append(s.blocks, blocksOf(s.size)-1)
	slices.Sort(s.blocks)
	s.blocks = slices.Compact(s.blocks)
	return s
}

func (s *scattered) Size() int64 { return s.size }
func (s *scattered) data() int64 { return int64(len(s.blocks)) * layers.BlockSize }

// block is what block b holds.
func (s *scattered) block(b int64) []byte {
	p := make([]byte, layers.BlockSize)
	if _, there := slices.BinarySearch(s.blocks, b); !there || b%31 == 0 {
		return p
	}
	rnd := rand.NewChaCha8([32]byte(append(binary.LittleEndian.AppendUint64(nil, uint64(b)), make([]byte, 24)...)))
	rnd.Read(p)
	if over := (b+1)*layers.BlockSize - s.size; over > 0 {
		clear(p[layers.BlockSize-over:])
	}
	return p
}

func (s *scattered) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), s.size-off)
	s.reads.add(n)
	for at := int64(0); at < n; {
		b := (off + at) / layers.BlockSize
		at += int64(copy(p[at:n], s.block(b)[(off+at)%layers.BlockSize:]))
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (s *scattered) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, b := range s.blocks {
			first := max(off, b*layers.BlockSize)
			end := min(off+n, s.size, (b+1)*layers.BlockSize)
			if first < end && !yield(layers.Extent{Off: first, Len: end - first, Kind: layers.Data}, nil) {
				return
			}
		}
	}
}

// compare restores a backup and expects the layer's content.
func (s *scattered) compare(t *testing.T, store object.Store, id layers.ID) {
	t.Helper()
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := &expecting{t: t, want: s}
	if err := r.Restore(t.Context(), id, w, RestoreOptions{Blank: true}); err != nil {
		t.Fatal(err)
	}
	for _, b := range s.blocks {
		if _, got := w.got.Load(b); !got && !bytes.Equal(s.block(b), zeroBlock[:]) {
			t.Errorf("block %d was not restored", b)
		}
	}
}

// An expecting takes a restore and compares it as it comes.
type expecting struct {
	t    *testing.T
	want *scattered
	got  sync.Map
}

func (e *expecting) WriteAt(p []byte, off int64) (int, error) {
	for at := 0; at < len(p); at += layers.BlockSize {
		b := (off + int64(at)) / layers.BlockSize
		e.got.Store(b, true)
		if part := p[at:min(len(p), at+layers.BlockSize)]; !bytes.Equal(part, e.want.block(b)[:len(part)]) {
			e.t.Errorf("block %d differs", b)
		}
	}
	return len(p), nil
}

func (e *expecting) WriteZeroes(off, n int64) error { return nil }
