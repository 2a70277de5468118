package repo

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// restorePast restores a backup past damage, onto a disk that is full of
// something else, and returns what came and what is said to be lost.
func restorePast(t testing.TB, r *Repo, id layers.ID, size int) ([]byte, []Range, error) {
	t.Helper()
	var lost []Range
	d := newDisk(size)
	err := r.Restore(t.Context(), id, d, RestoreOptions{Lost: func(l Loss) error {
		if !isDamage(l.Err) {
			t.Errorf("a range is lost for %v", l.Err)
		}
		lost = append(lost, l.Range)
		return nil
	}})
	return d.bytes, JoinRanges(lost), err
}

// without is an image with zeros where it is lost.
func without(image []byte, lost []Range) []byte {
	b := bytes.Clone(image)
	for _, r := range lost {
		clear(b[r.Off : r.Off+r.Len])
	}
	return b
}

// TestRestorePastDamage: whatever happens to whatever object, who asks for what
// is left gets every byte that is not told to be lost, zeros in the place of
// what is, and nothing is told to be lost that can be read. // B15
func TestRestorePastDamage(t *testing.T) {
	s := newSample(t, true)
	key := Key{Passphrase: secret}
	images := s.images(t, key)
	names := slices.Sorted(maps.Keys(s.objects))
	partly := 0
	for _, name := range names {
		if _, ok := packOf(name); !ok {
			continue
		}
		for what, broken := range breakages(s, names, name) {
			store := storeOf(t, s.objects)
			if store.Delete(t.Context(), name); broken != nil {
				store.Put(t.Context(), name, broken)
			}
			r, err := Open(t.Context(), store, key)
			if err != nil {
				t.Fatal(err)
			}
			for id, image := range images {
				got, lost, err := restorePast(t, r, id, len(image))
				if err != nil {
					t.Errorf("%s %s: %v", name, what, err)
					continue
				}
				if at := differ(got, without(image, lost)); at >= 0 {
					t.Errorf("%s %s: backup %s differs at %d, lost are %v", name, what, id, at, lost)
				}
				told := make(map[int64]bool)
				for _, r := range lost {
					for off := r.Off; off < r.Off+r.Len; off += layers.BlockSize {
						told[off] = true
					}
				}
				if want := unreadable(t, r, id, image); !maps.Equal(told, want) {
					t.Errorf("%s %s: backup %s: lost are %v, cannot be read %v", name, what, id, slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(want)))
				}
				if len(told) > 0 && len(told) < len(image)/layers.BlockSize {
					partly++
				}
			}
			r.Close()
		}
	}
	if partly == 0 {
		t.Error("nothing was lost in part")
	}
}

// TestRestoreAboveDamage: where the oldest leaf of a span is lost, what newer
// ones say of it is still right, to a restore and to a reader; and where the
// newest is lost, nothing below it is shown for what it hid. // B15
func TestRestoreAboveDamage(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	fillNoise(t, v)
	full, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	v.write(64<<10, bytes.Repeat([]byte("newer"), 4096))
	v.zero(512<<10, 64<<10)
	next, err := v.backup(t.Context(), r, full.ID)
	if err != nil {
		t.Fatal(err)
	}
	written := []Range{{64 << 10, 20 << 10}, {512 << 10, 64 << 10}}
	breakLeaf := func(of layers.ID) *Repo {
		root, err := r.openRoot(t.Context(), next.ID)
		if err != nil {
			t.Fatal(err)
		}
		objects := contents(t, store)
		for _, leaf := range root.spans.rows[0].leaves {
			if leaf.pack.id.session() == sessionOf(of) {
				objects[leaf.pack.name()][leaf.off] ^= 1
			}
		}
		broken, err := Open(t.Context(), storeOf(t, objects), Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { broken.Close() })
		return broken
	}
	got, lost, err := restorePast(t, breakLeaf(full.ID), next.ID, len(v.bytes))
	want := []Range{{0, 64 << 10}, {84 << 10, 428 << 10}, {576 << 10, 448 << 10}}
	if err != nil || !slices.Equal(lost, want) || !bytes.Equal(got, without(v.bytes, lost)) {
		t.Errorf("the base is lost: %v, lost are %v, want %v", err, lost, want)
	}
	l, err := breakLeaf(full.ID).Layer(t.Context(), next.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, w := range written {
		p := make([]byte, w.Len)
		if _, err := l.ReadAt(p, w.Off); err != nil || !bytes.Equal(p, v.bytes[w.Off:w.Off+w.Len]) {
			t.Errorf("read %d bytes at %d above a lost base: %v", w.Len, w.Off, err)
		}
		if _, err := l.ReadAt(p, w.Off+layers.BlockSize); err == nil {
			t.Errorf("a read at %d that goes into what is lost has no error", w.Off+layers.BlockSize)
		}
	}
	got, lost, err = restorePast(t, breakLeaf(next.ID), next.ID, len(v.bytes))
	if err != nil || !slices.Equal(lost, []Range{{0, 1 << 20}}) || !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("the newest leaf is lost: %v, lost are %v", err, lost)
	}
}
