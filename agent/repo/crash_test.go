package repo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

var errStopped = errors.New("stopped")

// crashCase is a repository with one backup, and the volume changed since.
func crashCase(t *testing.T) (store *object.Mem, r *Repo, v *volume, parent layers.ID, before []byte) {
	store = object.NewMem()
	r = testRepo(t, store, true)
	r.packTarget = 64 << 10
	rnd := newRand(t)
	v = newVolume(1 << 20)
	for i := range v.bytes {
		v.bytes[i] = byte(rnd.Uint32() & 0x3f)
	}
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	before = bytes.Clone(v.bytes)
	v.forget()
	for off := int64(0); off < 1<<20; off += 9 << 12 {
		p := make([]byte, 3<<12)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		v.write(off, p)
	}
	return store, r, v, b.ID, before
}

// incremental makes the backup with the given ID.
func (v *volume) incremental(ctx context.Context, r *Repo, id, parent layers.ID) error {
	_, err := r.Create(ctx, Job{ID: id, Volume: v.id, Parent: parent, Source: v.source(), Changes: v.changes()})
	return err
}

func TestCommitIsAtomic(t *testing.T) {
	// B5, B15: a crash at any write leaves either the whole backup or none,
	// and the others as they were. Whatever is cleaned up after an error is
	// not: a crash cleans nothing.
	store, _, v, parent, before := crashCase(t)
	objects := contents(t, store)
	for puts := int64(0); ; puts++ {
		store := storeOf(t, objects)
		var left atomic.Int64
		left.Store(puts)
		stopped := func(op, name string) error {
			if op == "put" && left.Add(-1) < 0 || op == "delete" && left.Load() < 0 {
				return errStopped
			}
			return nil
		}
		r, err := Open(t.Context(), &objecttest.Hook{Store: store, Before: stopped}, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		r.packTarget = 64 << 10
		id := layers.NewID()
		err = v.incremental(t.Context(), r, id, parent)
		if err != nil && !errors.Is(err, errStopped) {
			t.Fatalf("%d puts: %v", puts, err)
		}
		again, openErr := Open(t.Context(), store, Key{Passphrase: secret})
		if openErr != nil {
			t.Fatal(openErr)
		}
		_, missing := again.Backup(t.Context(), id)
		if err != nil && !errors.Is(missing, fs.ErrNotExist) {
			t.Fatalf("%d puts: a backup that was not finished is there: %v", puts, missing)
		}
		compare(t, again, parent, before)
		if err == nil {
			compare(t, again, id, v.bytes)
			if puts < 5 {
				t.Errorf("the backup took %d puts: too few to try", puts)
			}
			return
		}
		// The next try is whole, beside what the crash left.
		if err := v.incremental(t.Context(), again, layers.NewID(), parent); err != nil {
			t.Fatalf("after a stop at put %d: %v", puts, err)
		}
	}
}

func TestEveryRequestCanFail(t *testing.T) {
	// B19: an error at any request makes an error, no backup, and what was
	// stored is removed again.
	store, _, v, parent, before := crashCase(t)
	objects := contents(t, store)
	for k := int64(0); ; k++ {
		store := storeOf(t, objects)
		hook := &objecttest.Hook{Store: store}
		r, err := Open(t.Context(), hook, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		r.packTarget = 64 << 10
		var seen atomic.Int64
		var commit atomic.Bool // the Put of the root fails: packs stay, see writer.committed
		hook.Before = func(op, name string) error {
			if seen.Add(1) == k+1 {
				commit.Store(op == "put" && strings.Contains(name, "/b/"))
				return errStopped
			}
			return nil
		}
		id := layers.NewID()
		err = v.incremental(t.Context(), r, id, parent)
		if seen.Swap(math.MinInt64) <= k { // nothing fails any more
			if err != nil {
				t.Fatal(err)
			}
			compare(t, r, id, v.bytes)
			if k < 10 {
				t.Errorf("only %d requests were tried", k)
			}
			return
		}
		if err == nil { // it was the removal of something old
			compare(t, r, id, v.bytes)
			continue
		}
		if !errors.Is(err, errStopped) {
			t.Fatalf("request %d: %v", k, err)
		}
		if _, err := r.Backup(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("request %d failed, and the backup is there: %v", k, err)
		}
		for name := range contents(t, store) {
			if _, old := objects[name]; !old && !strings.HasPrefix(name, "s/") && !commit.Load() {
				t.Errorf("request %d failed: %s is left", k, name)
			}
		}
		compare(t, r, parent, before)
	}
}

func TestLostAnswerOfTheCommit(t *testing.T) {
	// The root was written, the answer was lost: the backup is there, and
	// Create says so.
	store, _, v, parent, _ := crashCase(t)
	hook := &objecttest.Hook{Store: store, After: func(op, name string) error {
		if op == "put" && strings.Contains(name, "/b/") {
			return errStopped
		}
		return nil
	}}
	r, err := Open(t.Context(), hook, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	id := layers.NewID()
	if err := v.incremental(t.Context(), r, id, parent); err != nil {
		t.Fatal(err)
	}
	compare(t, r, id, v.bytes)
}

func TestCancelLeavesNothing(t *testing.T) {
	// B19: cancel of a create leaves no record and no objects.
	store, _, v, parent, before := crashCase(t)
	objects := contents(t, store)
	ctx, cancel := context.WithCancel(t.Context())
	var puts atomic.Int64
	hook := &objecttest.Hook{Store: store, Before: func(op, name string) error {
		if op == "put" && strings.HasPrefix(name, "p/") {
			if puts.Add(1) == 2 {
				cancel()
			}
		}
		return nil
	}}
	r, err := Open(t.Context(), hook, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	r.packTarget = 64 << 10
	if err := v.incremental(ctx, r, layers.NewID(), parent); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	for name := range contents(t, store) {
		if _, old := objects[name]; !old {
			t.Errorf("%s is left", name)
		}
	}
	compare(t, r, parent, before)
}
