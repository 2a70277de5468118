package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// TestZeroOverOldData: what was zeroed since restores as zero, onto a disk that
// is full of something else, from every later backup. // B15
func TestZeroOverOldData(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1<<20 + 512)
	v.write(0, bytes.Repeat([]byte("old data"), (1<<20)/8))
	parent, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	for _, hole := range []struct{ off, n int64 }{{0, 4096}, {100 << 10, 128 << 10}, {300_000, 5000}, {1 << 20, 512}} {
		v.zero(hole.off, hole.n)
		b, err := v.backup(t.Context(), r, parent.ID)
		if err != nil {
			t.Fatal(err)
		}
		v.forget()
		parent = b
		compare(t, r, b.ID, v.bytes)
	}
	v.zero(0, int64(len(v.bytes)))
	all, err := v.backup(t.Context(), r, parent.ID)
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(len(v.bytes))
	if err := r.Restore(t.Context(), all.ID, d, RestoreOptions{}); err != nil || !bytes.Equal(d.bytes, make([]byte, len(v.bytes))) {
		t.Errorf("a volume that is all zeros now: %v", err)
	}
}

// TestAttackerDeniesAndDoesNotDeceive: whoever can write to the store, and has
// every object that this repository and another one with the same passphrase
// ever had, puts any of them in the place of any other, whole or in part. What
// is restored then is the backup, or nothing; what is listed is what was
// backed up, or an error. // B15
func TestAttackerDeniesAndDoesNotDeceive(t *testing.T) {
	key := Key{Passphrase: secret}
	s, foreign := newSample(t, true), newSample(t, true)
	images := s.images(t, key)
	want := s.backups(t, s.objects, key)
	s.delete(t, key)
	names := slices.Sorted(maps.Keys(s.objects))
	pool := make(map[string][]byte) // all that he has, by where it is from
	for name, b := range s.objects {
		pool[name] = b
	}
	for name, b := range foreign.objects {
		pool["other/"+name] = b
	}
	for _, name := range names {
		if strings.HasPrefix(name, sessionRoot) || kindInVolume(name) == "d" {
			continue // nothing is read from them
		}
		for from, b := range pool {
			for what, put := range map[string][]byte{"all": b, "front": mixed(b, s.objects[name]), "end": mixed(s.objects[name], b)} {
				same := strings.TrimPrefix(from, "other/")
				if bytes.Equal(put, s.objects[name]) || what != "all" && (same[:2] != name[:2] || kindInVolume(same) != kindInVolume(name)) {
					continue
				}
				objects := maps.Clone(s.objects)
				objects[name] = put
				r, err := Open(t.Context(), storeOf(t, objects), key)
				if err != nil {
					continue // denied
				}
				for id, image := range images {
					d := newDisk(len(image))
					if err := r.Restore(t.Context(), id, d, RestoreOptions{}); err == nil && !bytes.Equal(d.bytes, image) {
						t.Errorf("%s of %s in the place of %s: backup %s restores as something else", what, from, name, id)
					} else if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s of %s in the place of %s: backup %s: %v", what, from, name, id, err)
					}
				}
				for b, err := range r.Backups(t.Context()) {
					if w := want[b.ID]; err == nil && (w.Name != b.Name || w.Volume != b.Volume || w.Size != b.Size || !w.Created.Equal(b.Created)) {
						t.Errorf("%s of %s in the place of %s: listed is %+v", what, from, name, b)
					}
				}
				r.Close()
			}
		}
	}
}

// mixed is the front half of one object and the other half of another.
func mixed(front, end []byte) []byte {
	return append(bytes.Clone(front[:len(front)/2]), end[len(end)/2:]...)
}

// backups are what a store lists.
func (s *sample) backups(t testing.TB, objects map[string][]byte, key Key) map[layers.ID]Backup {
	t.Helper()
	r, err := Open(t.Context(), storeOf(t, objects), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := make(map[layers.ID]Backup)
	for b, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all[b.ID] = b
	}
	return all
}
