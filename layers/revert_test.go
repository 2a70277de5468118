package layers

import (
	"bytes"
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

// S5: a revert keeps the present state first, the snapshots after the target stay
// as a branch, and every one of them reads exactly. A branch can be gone back to,
// and what nobody keeps of it gives its space back.
func TestRevert(t *testing.T) {
	v, dir := newVolume(t, 256)
	writeBlocks(t, v, 1, 0, 100)
	first := takeSnapshot(t, v)
	writeBlocks(t, v, 2, 50, 100)
	second := takeSnapshot(t, v)
	if err := v.Grow(300 * BlockSize); err != nil {
		t.Fatal(err)
	}
	writeBlocks(t, v, 3, 100, 200)
	want := map[ID][]byte{}
	for _, id := range []ID{first, second} {
		w, err := v.View(id)
		if err != nil {
			t.Fatal(err)
		}
		want[id] = content(t, w)
		w.Close()
	}
	safety := NewID()
	want[safety] = content(t, v)
	if err := v.Revert(first, safety); err != nil {
		t.Fatal(err)
	}
	grown := append(bytes.Clone(want[first]), make([]byte, 44*BlockSize)...)
	if got := content(t, v); !bytes.Equal(got, grown) {
		t.Fatalf("the volume differs from its target at %d", differ(got, grown))
	}
	writeBlocks(t, v, 4, 90, 20)
	third := takeSnapshot(t, v)
	want[third] = content(t, v)
	tree := map[ID]ID{first: {}, second: first, safety: second, third: first}
	check := func(when string) {
		t.Helper()
		list := v.Boundaries()
		if len(list) != len(tree) {
			t.Errorf("%s: %d boundaries, want %d", when, len(list), len(tree))
		}
		for _, b := range list {
			if b.Parent != tree[b.ID] {
				t.Errorf("%s: %s lies on %s, want %s", when, b.ID, b.Parent, tree[b.ID])
			}
			w, err := v.View(b.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, w); !bytes.Equal(got, want[b.ID]) {
				t.Errorf("%s: snapshot %s differs at %d", when, b.ID, differ(got, want[b.ID]))
			}
			w.Close()
			for _, from := range list {
				checkDiffOf(t, v, from.ID, b.ID, want[from.ID], want[b.ID])
			}
		}
		if err := sound(v); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("after the revert")
	mustTidy(t, v)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = reopenQuiet(t, dir)
	check("opened again")

	if err := v.Revert(safety, NewID()); err != nil {
		t.Fatal(err)
	}
	if got := content(t, v); !bytes.Equal(got, want[safety]) {
		t.Errorf("back on the branch the volume differs at %d", differ(got, want[safety]))
	}
	// Only the branch is kept: what the other one wrote goes whole.
	last := v.Boundaries()[len(v.Boundaries())-1].ID
	if err := errors.Join(v.DeleteSnapshot(third, false), v.DeleteSnapshot(last, false), v.DeleteSnapshot(first, false)); err != nil {
		t.Fatal(err)
	}
	mustTidy(t, v)
	delete(tree, third)
	delete(tree, first)
	tree[second] = ID{}
	check("without the other branch")
	if got := v.Usage().Allocated; got != (50+100+200)*BlockSize {
		t.Errorf("%d blocks are taken, want %d", got/BlockSize, 50+100+200)
	}
}

// checkDiffOf lays the diff of two boundaries over the content of the one, which
// must give the other: S9.
func checkDiffOf(t *testing.T, v *Volume, from, to ID, have, want []byte) {
	t.Helper()
	w, err := v.Diff(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	got := make([]byte, len(want))
	copy(got, have)
	for e, err := range w.Extents(0, w.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ReadAt(got[e.Off:e.End()], e.Off); err != nil {
			t.Fatal(err)
		}
	}
	if at := differ(got, want); at >= 0 {
		t.Errorf("the diff from %s to %s laid over the one differs from the other at %d", from, to, at)
	}
}

func TestRevertRefused(t *testing.T) {
	v, _ := newVolume(t, 64)
	id, mark := takeSnapshot(t, v), takeSnapshot(t, v)
	if err := v.DeleteSnapshot(mark, true); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ got, want error }{
		"to nothing":              {v.Revert(NewID(), NewID()), fs.ErrNotExist},
		"to a mark":               {v.Revert(mark, NewID()), fs.ErrNotExist},
		"without a safety":        {v.Revert(id, ID{}), fs.ErrInvalid},
		"with one that is there":  {v.Revert(id, mark), fs.ErrExist},
		"with the target as such": {v.Revert(id, id), fs.ErrExist},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.got, c.want)
		}
	}
	if n := len(v.Boundaries()); n != 2 {
		t.Errorf("%d boundaries after refused reverts, want 2", n)
	}
}

// V2, S3: where no snapshot needs them, blocks that are discarded or overwritten
// give their space back without waiting for the next snapshot.
func TestHeadHidesWhatNobodyKeeps(t *testing.T) {
	for _, keepMark := range []bool{false, true} {
		v, dir := newVolume(t, 4096)
		writeBlocks(t, v, 1, 0, 2048)
		id := takeSnapshot(t, v)
		if err := v.DeleteSnapshot(id, keepMark); err != nil {
			t.Fatal(err)
		}
		mustTidy(t, v)
		if err := v.WriteZeroes(0, 1024*BlockSize); err != nil {
			t.Fatal(err)
		}
		mustTidy(t, v)
		if got := diskUsage(t, dir); got > 1100*BlockSize {
			t.Errorf("keep mark %v: %d bytes are taken after half was discarded, want %d", keepMark, got, 1024*BlockSize)
		}
		writeBlocks(t, v, 2, 1024, 512)
		if err := v.checkpoint(); err != nil {
			t.Fatal(err)
		}
		mustTidy(t, v)
		if got := diskUsage(t, dir); got > 1100*BlockSize {
			t.Errorf("keep mark %v: %d bytes are taken after some were overwritten, want %d", keepMark, got, 1024*BlockSize)
		}
		p := content(t, v)
		for b, want := range map[int]byte{0: 0, 1023: 0, 1024: 2, 1535: 2, 1536: 1, 2047: 1, 2048: 0} {
			if p[b*BlockSize] != want {
				t.Errorf("keep mark %v: block %d is %d, want %d", keepMark, b, p[b*BlockSize], want)
			}
		}
	}
}

// V9: where the sync after the new chain's rename fails, either chain may be found
// later, and the files of both must be there.
func TestFailedSyncOfRename(t *testing.T) {
	for name, do := range map[string]func(m *model) error{
		"snapshot": func(m *model) error { return m.v.Snapshot(NewID()) },
		"revert":   func(m *model) error { return m.v.Revert(m.marks[0].id, NewID()) },
	} {
		d := newMemDisk()
		m := newModel(t, d, testRand(), 64*BlockSize, smallTuning)
		m.write()
		m.snapshot()
		renamed := false
		d.fail = func(op, name string) error {
			renamed = renamed || op == "rename"
			if renamed && op == "sync" && name == "." {
				return syscall.EIO
			}
			return nil
		}
		if err := do(m); !errors.Is(err, ErrReadOnly) {
			t.Fatalf("%s: got %v, want %v", name, err, ErrReadOnly)
		}
		d.fail = nil
		m.v.Close() // says why it is read-only
		m.open()
		if err := sound(m.v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := m.v.Close(); err != nil {
			t.Error(err)
		}
	}
}
