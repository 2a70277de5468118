package repo

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

func TestCondemnedListsSayWhatWasWritten(t *testing.T) {
	// A list that is cut, flipped anywhere, or put under another's name says
	// nothing, and pruning leaves it aside.
	r := testRepo(t, object.NewMem(), true)
	want := &condemned{
		id:    fixedID,
		packs: []packSize{{inData, objectID{1}, 5}, {inLeaves, objectID{2}, 1 << 33}},
		roots: []rootName{{fixedID, 1, 1, otherID}, {otherID, 2, 300, fixedID}},
	}
	b := r.sealCondemned(want)
	got, err := r.openCondemned(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	if got.id != want.id || !slices.Equal(got.packs, want.packs) || !slices.Equal(got.roots, want.roots) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	for n := range b {
		if _, err := r.openCondemned(bytes.Clone(b[:n])); err == nil {
			t.Fatalf("cut at %d of %d it can be read", n, len(b))
		}
		flipped := bytes.Clone(b)
		flipped[n] ^= 1 << (n % 8)
		if _, err := r.openCondemned(flipped); err == nil {
			t.Fatalf("flipped at %d of %d it can be read", n, len(b))
		}
	}
	if err := r.store.Put(t.Context(), listName(otherID), b); err != nil {
		t.Fatal(err)
	}
	if _, err := r.readCondemned(t.Context(), otherID, int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("under the name of another list: %v", err)
	}
	for _, root := range []rootName{{layers.ID{}, 1, 1, otherID}, {fixedID, 1, 1, layers.ID{}}} {
		if _, err := parseRoots(appendRoots(nil, []rootName{root})); err == nil {
			t.Errorf("the root %+v is read", root)
		}
	}
	later := bytes.Clone(b)
	later[8]++
	if _, err := r.openCondemned(later); !errors.Is(err, ErrVersion) {
		t.Errorf("of a later version: %v", err)
	}
}
