package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// Whatever the diff of two backups leaves out is equal, what it yields is as
// the second reads it, and nothing is yielded that no backup in between wrote.
func TestDiffOfBackups(t *testing.T) {
	rnd := newRand(t)
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.splitLeaf = 400 // some spans are cut
	v := newVolume(3<<20 + 1000)
	var ids []layers.ID
	var images [][]byte
	var touched [][]bool
	for i := range 9 {
		for range 1 + rnd.IntN(20) {
			p := make([]byte, 1+rnd.IntN(30_000))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			v.write(rnd.Int64N(int64(len(v.bytes)-len(p))), p)
		}
		v.zero(rnd.Int64N(2<<20), rnd.Int64N(100_000))
		if i == 4 {
			v.grow(int64(len(v.bytes)) + 1<<20)
		}
		parent := layers.ID{}
		if i > 0 && i != 7 { // the last two share nothing with the others
			parent = ids[i-1]
		}
		marks := make([]bool, len(v.changed))
		for b, kind := range v.changed {
			marks[b] = kind != layers.Absent || parent.IsZero()
		}
		b, err := v.backup(t.Context(), r, parent)
		if err != nil {
			t.Fatal(err)
		}
		v.forget()
		ids, images, touched = append(ids, b.ID), append(images, bytes.Clone(v.bytes)), append(touched, marks)
	}
	for i := range ids {
		for j := range ids {
			checkDiff(t, r, ids[i], ids[j], images[i], images[j], touched[min(i, j)+1:max(i, j)+1])
		}
	}
}

func checkDiff(t *testing.T, r *Repo, from, to layers.ID, was, is []byte, touched [][]bool) {
	t.Helper()
	before := make([]byte, len(is)) // zeros past the end of from
	copy(before, was)
	end := int64(0)
	same := func(next int64) { // what lies between two extents
		if at := differ(is[end:next], before[end:next]); at >= 0 {
			t.Fatalf("byte %d differs, and is not in the diff", end+at)
		}
	}
	for e, err := range r.Diff(t.Context(), from, to) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Off < end || e.Len <= 0 || e.End() > int64(len(is)) || e.Kind == layers.Absent {
			t.Fatalf("extent %+v after %d", e, end)
		}
		same(e.Off)
		end = e.End()
		if at := differ(is[e.Off:end], make([]byte, e.Len)); e.Kind == layers.Zero && at >= 0 {
			t.Fatalf("%+v, and byte %d is %d", e, e.Off+at, is[e.Off+at])
		}
		for b := e.Off / layers.BlockSize; b < blocksOf(end); b++ {
			if !slices.ContainsFunc(touched, func(marks []bool) bool { return b < int64(len(marks)) && marks[b] }) {
				t.Fatalf("block %d of %+v was not written between the two", b, e)
			}
		}
	}
	same(int64(len(is)))
}

func TestDiffReadsOnlyMapsThatDiffer(t *testing.T) {
	hook := &objecttest.Hook{Store: object.NewMem()}
	r := testRepo(t, hook, true)
	v := newVolume(1 << 20)
	v.write(0, bytes.Repeat([]byte("data"), 1<<18))
	a, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	b, err := v.backup(t.Context(), r, a.ID) // nothing changed
	if err != nil {
		t.Fatal(err)
	}
	hook.Before = func(op, name string) error {
		if strings.HasPrefix(name, "p/") || strings.HasPrefix(name, "m/") {
			t.Errorf("%s %s", op, name)
		}
		return nil
	}
	for e, err := range r.Diff(t.Context(), a.ID, b.ID) {
		t.Errorf("%+v, %v between equal backups", e, err)
	}
	hook.Before = nil
	other, err := newVolume(1<<20).backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		from, to layers.ID
		want     error
	}{{a.ID, other.ID, ErrOtherVolume}, {a.ID, layers.NewID(), fs.ErrNotExist}, {layers.NewID(), a.ID, fs.ErrNotExist}} {
		n := 0
		for _, err := range r.Diff(t.Context(), test.from, test.to) {
			if n++; !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		}
		if n != 1 {
			t.Errorf("%d items, want one error", n)
		}
	}
}
