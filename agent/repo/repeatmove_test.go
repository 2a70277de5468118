package repo

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// A frame that is repaired is known at all its places again, also where only
// one of them is still known. // B15
func TestRepairOfRepeats(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 512 << 10
	v := doubled(newRand(t), 1<<20)
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{objects: contents(t, store)}
	images := map[layers.ID][]byte{b.ID: v.bytes}
	repeated := make(map[int64]bool) // blocks with a repeat
	for _, f := range framesOf(t, r) {
		for _, r := range f.repeats {
			for i := range r.count {
				repeated[f.blockAt(int32(r.at+i))] = true
			}
		}
	}
	if len(repeated) == 0 {
		t.Fatal("nothing is repeated")
	}
	proved := func(context.Context, layers.ID) (Source, error) {
		return Source{Layers: []layers.Layer{&content{bytes: v.bytes}}}, nil
	}
	exact := func(known func(block int64) bool) func(context.Context, layers.ID) (Source, error) {
		return func(context.Context, layers.ID) (Source, error) {
			return Source{Exact: func(_ layers.ID, p []byte, off int64) (bool, error) {
				copy(p, v.bytes[off:])
				return known(off / layers.BlockSize), nil
			}}, nil
		}
	}
	for _, name := range s.packsOnly(t) {
		flipped := bytes.Clone(s.objects[name])
		flipped[headerSize+100] ^= 8
		for what, c := range map[string]struct {
			broken []byte
			heal   func(context.Context, layers.ID) (Source, error)
		}{
			"a frame, proved":              {flipped, proved},
			"missing, unchanged since":     {nil, exact(func(int64) bool { return true })},
			"missing, one place unchanged": {nil, exact(func(block int64) bool { return !repeated[block] })},
		} {
			report, healed, err := s.repair(t, name, c.broken, Deep, c.heal)
			if err != nil || report.Healed == 0 || len(report.Damaged) > 0 {
				t.Errorf("%s of %s: %v, %+v", what, name, err, report)
				continue
			}
			s.expectWhole(t, what, healed, images)
		}
	}
}

// What is copied out of a pack keeps all its places.
func TestRepackKeepsRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := newRand(t)
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 1 << 20
		v := doubled(rnd, 2<<20)
		var ids []layers.ID
		var parent layers.ID
		for range 8 { // the map is merged with the sixth
			b, err := v.backup(t.Context(), r, parent)
			if err != nil {
				t.Fatal(err)
			}
			ids, parent = append(ids, b.ID), b.ID
			v.forget()
			noise := make([]byte, 7*frameBytes)
			for at := int64(0); at+int64(len(noise)) <= int64(len(v.bytes)); at += 8 * frameBytes {
				for i := range noise {
					noise[i] = byte(rnd.Uint32())
				}
				v.write(at, noise)
			}
			time.Sleep(time.Hour)
		}
		image, err := readWhole(r, parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids[:7] {
			if err := r.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		copied := 0
		for range 6 {
			time.Sleep(25 * time.Hour)
			report := prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
			t.Logf("%+v", report)
			copied += int(report.Rewritten.Objects)
			expectAll(t, store, map[layers.ID][]byte{parent: image})
		}
		frames := framesOf(t, r)
		if _, repeated := countBlocks(frames); copied == 0 || repeated == 0 || slices.ContainsFunc(frames, func(s section) bool { return len(s.runs) == 0 }) {
			t.Errorf("%d packs were copied to; of %d frames %d blocks are repeats", copied, len(frames), repeated)
		}
	})
}

// A map that is made again from what packs say of themselves has the repeats.
// B15
func TestRepairOfLeavesWithRepeats(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 512 << 10
	v := doubled(newRand(t), 1<<20)
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	if _, repeated := countBlocks(framesOf(t, r)); repeated == 0 {
		t.Fatal("nothing is repeated")
	}
	s := &sample{objects: contents(t, store)}
	found := false
	for name := range s.objects {
		if !strings.HasPrefix(name, "m/") {
			continue
		}
		found = true
		report, healed, err := s.repair(t, name, nil, Deep, nil)
		if err != nil || len(report.Damaged) > 0 {
			t.Errorf("%s is missing: %v, %+v", name, err, report)
			continue
		}
		s.expectWhole(t, name, healed, map[layers.ID][]byte{b.ID: v.bytes})
	}
	if !found {
		t.Error("there is no pack of leaves")
	}
}
