package repo

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// TestBackupsDoNotGoBackToAnOldKey: who has a volume's old key and can write to
// the store removes the newer one; no backup is sealed with the old key after
// that. With a key that is made then backups go on. // B15
func TestBackupsDoNotGoBackToAnOldKey(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("first"))
	first, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.RotateVolumeKey(t.Context(), v.id); err != nil {
		t.Fatal(err)
	}
	ref, _ := r.index.newestKey(v.id)
	v.write(0, []byte("second"))
	second, err := v.backup(t.Context(), r, first.ID)
	if err != nil {
		t.Fatal(err)
	}
	store.Delete(t.Context(), volumeKeyName(ref))
	for _, parent := range []layers.ID{second.ID, first.ID, {}} {
		attacked, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.backup(t.Context(), attacked, parent)
		attacked.Close()
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), volumeKeyName(ref)) {
			t.Errorf("parent %s: %v, want that the newest key is missing", parent, err)
		}
	}
	again, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if epoch, err := again.RotateVolumeKey(t.Context(), v.id); err != nil || epoch != 2 {
		t.Fatalf("a new key: %d, %v", epoch, err)
	}
	third, err := v.backup(t.Context(), again, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, again, third.ID, v.bytes)
}

// TestIncrementOnADamagedMap: an increment that has to read what is damaged in
// its parent's map fails, says so, and leaves nothing; a full backup then has
// everything. // B7, B15
func TestIncrementOnADamagedMap(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(4 << 20)
	rnd := newRand(t)
	for i := range v.bytes {
		v.bytes[i] = byte(rnd.Uint32())
	}
	v.mark(0, int64(len(v.bytes)), layers.Data)
	full, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	var leaves string
	for _, name := range packsOf(t, store, full.ID) {
		if strings.HasPrefix(name, "m/") {
			leaves = name
		}
	}
	b, err := object.ReadAll(t.Context(), store, leaves, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	b[headerSize+1] ^= 1
	store.Put(t.Context(), leaves, b)
	fresh, err := Open(t.Context(), store, Key{Passphrase: secret}) // has read nothing
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	parent := full.ID
	for n := 0; ; n++ {
		v.write(rnd.Int64N(4<<20), []byte("changed"))
		before := contents(t, store)
		made, err := v.backup(t.Context(), fresh, parent)
		if err == nil && n < 2*maxLeaves {
			parent = made.ID
			v.forget()
			continue
		}
		if !errors.Is(err, ErrParentDamaged) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), leaves) {
			t.Errorf("increment %d: %v, want that the parent is damaged in %s", n, err, leaves)
		}
		for name := range contents(t, store) {
			if before[name] == nil && !strings.HasPrefix(name, sessionRoot) {
				t.Errorf("the backup that failed left %s", name)
			}
		}
		break
	}
	whole, err := v.backup(t.Context(), fresh, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, fresh, whole.ID, v.bytes)
	report, err := fresh.Audit(t.Context(), AuditOptions{Level: Map})
	if !errors.Is(err, ErrCorrupt) || len(report.Damaged) == 0 || slices.ContainsFunc(report.Damaged, func(d Touched) bool { return d.Backup == whole.ID }) {
		t.Errorf("audit: %v, damaged %+v", err, report.Damaged)
	}
	if !bytes.Equal(contents(t, store)[leaves], b) {
		t.Error("the damaged object was written again")
	}
}
