package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// New packs are sealed with the newest key; what is older stays readable, alone
// and below them.
func TestVolumeKeyRotates(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 64 << 10
	rnd := newRand(t)
	v := newVolume(2 << 20)
	fill := func(from, to int) {
		for i := range v.bytes[from:to] {
			v.bytes[from+i] = byte(rnd.Uint32())
		}
		v.mark(int64(from), int64(to-from), layers.Data)
	}
	if _, err := r.RotateVolumeKey(t.Context(), v.id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key for a volume without backups: %v", err)
	}
	fill(0, 1<<20)
	var parent layers.ID
	images := make(map[layers.ID][]byte)
	for epoch := uint32(1); epoch <= 7; epoch++ { // more than a row has leaves: some are merged
		before := contents(t, store)
		b, err := v.backup(t.Context(), r, parent)
		if err != nil {
			t.Fatal(err)
		}
		for name, object := range contents(t, store) {
			if _, old := before[name]; old || name[:2] == sessionRoot || name[:2] == slotPrefix || parsesAsKey(name) {
				continue
			}
			h, err := parseHeader(object)
			if err != nil || h.key.volume == v.id && h.key.epoch != epoch {
				t.Errorf("backup %d: %s has a key of epoch %d, %v", epoch, name, h.key.epoch, err)
			}
		}
		parent, images[b.ID] = b.ID, bytes.Clone(v.bytes)
		v.forget()
		at := int(epoch) * 100_000
		fill(at, at+50_000)
		if got, err := r.RotateVolumeKey(t.Context(), v.id); err != nil || got != epoch+1 {
			t.Fatalf("rotated to epoch %d, %v, want %d", got, err, epoch+1)
		}
	}
	again, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for id, image := range images {
		compare(t, again, id, image)
		if _, err := again.Verify(t.Context(), id, VerifyOptions{Level: Deep}); err != nil {
			t.Error(err)
		}
	}
}

func parsesAsKey(name string) bool {
	n, ok := parseVolumeName(name)
	return ok && n.kind == "k"
}

// Whoever writes to the store puts a key there that claims to be the newest.
func TestForgedVolumeKey(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 16)
	if _, err := v.backup(t.Context(), r, layers.ID{}); err != nil {
		t.Fatal(err)
	}
	forged := newKeyring(suiteAES, r.ID(), [32]byte{1})
	ref, _, stored := forged.make(v.id, 1<<32-1)
	if err := store.Put(t.Context(), volumeKeyName(ref), stored); err != nil {
		t.Fatal(err)
	}
	_, rotated := r.RotateVolumeKey(t.Context(), v.id)
	_, made := v.backup(t.Context(), r, layers.ID{})
	for _, err := range []error{rotated, made} {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("with a forged volume key: %v", err)
		}
	}
}
