package repo

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// repair breaks an object, lets Audit repair what it can, and returns the
// report and the store.
func (s *sample) repair(t testing.TB, name string, broken []byte, level Level, heal func(context.Context, layers.ID) (Source, error)) (AuditReport, *object.Mem, error) {
	t.Helper()
	store := storeOf(t, s.objects)
	if store.Delete(t.Context(), name); broken != nil {
		store.Put(t.Context(), name, broken)
	}
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := r.Audit(t.Context(), AuditOptions{Level: level, Repair: true, Heal: heal})
	for old := range s.objects {
		b, gone := object.ReadAll(t.Context(), store, old, 1<<30)
		if old == name {
			if (gone != nil) != (broken == nil) || !bytes.Equal(b, broken) {
				t.Errorf("%s was written again", name)
			}
		} else if gone != nil || !bytes.Equal(b, s.objects[old]) {
			t.Errorf("%s changed: %v", old, gone)
		}
	}
	return report, store, err
}

// expectWhole opens a store anew and compares what its backups restore with the
// images, and has it audited.
func (s *sample) expectWhole(t testing.TB, what string, store object.Store, images map[layers.ID][]byte) {
	t.Helper()
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for id, image := range images {
		compare(t, r, id, image)
		if report, err := r.Verify(t.Context(), id, VerifyOptions{Level: Deep}); err != nil {
			t.Errorf("%s: verify backup %s: %v, %v", what, id, err, report.Damage)
		}
		if l, err := r.Layer(t.Context(), id); err != nil {
			t.Error(err)
		} else {
			got := make([]byte, len(image))
			if _, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got, image) {
				t.Errorf("%s: backup %s reads otherwise: %v", what, id, err)
			}
			l.Close()
		}
	}
	if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep}); err != nil || len(report.Damaged) > 0 {
		t.Errorf("%s: an audit after the repair: %v, %+v", what, err, report)
	}
}

// packsOnly are the packs of a sample that have frames and no leaves.
func (s *sample) packsOnly(t testing.TB) (names []string) {
	t.Helper()
	r, err := Open(t.Context(), storeOf(t, s.objects), Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		id, ok := packOf(name)
		if !ok || id.where != inData {
			continue
		}
		h, err := parseHeader(s.objects[name])
		if err != nil {
			t.Fatal(err)
		}
		var p checkedPack
		if _, err := p.parse(t.Context(), r, inData, packRef{id.id, h.key}, bytes.Clone(s.objects[name])); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(p.sections, func(s section) bool { return s.kind != sectionFrame }) {
			names = append(names, name)
		}
	}
	return names
}

// fullAgain adds a full backup of what the first one holds to a sample.
func (s *sample) fullAgain(t testing.TB) {
	t.Helper()
	store := storeOf(t, s.objects)
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	image := s.images(t, Key{Passphrase: secret})[s.ids[0]]
	v := newVolume(int64(len(image)))
	v.id, v.bytes = s.volume.id, image
	v.mark(0, int64(len(image)), layers.Data)
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	s.ids = append(s.ids, b.ID)
	s.objects = contents(t, store)
}

// TestRepairFromAnotherBackup: what happens to a pack whose content stands in
// another backup too costs nothing. // B15
func TestRepairFromAnotherBackup(t *testing.T) {
	s := newSample(t, true)
	images := s.images(t, Key{Passphrase: secret})
	s.fullAgain(t)
	for _, name := range s.packsOnly(t) {
		if !strings.Contains(name, "/"+objectIDOf(s.ids[0])) {
			continue // what increments have is nowhere else
		}
		flips := 0
		for what, broken := range breakages(s, slices.Sorted(maps.Keys(s.objects)), name) {
			if what == "flipped" {
				if flips++; flips%3 != 1 {
					continue
				}
			}
			report, store, err := s.repair(t, name, broken, Deep, nil)
			// Without its trailer nothing says what a frame was.
			proved := broken != nil && len(broken) == len(s.objects[name]) && what == "flipped" && flips > 1
			if err != nil && proved {
				t.Errorf("%s %s: %v", name, what, err)
			}
			if err == nil {
				s.expectWhole(t, name+" "+what, store, images)
			} else if !errors.Is(err, ErrCorrupt) || len(report.Damaged) == 0 {
				t.Errorf("%s %s: %v, %+v", name, what, err, report)
			}
		}
	}
}

// objectIDOf is how the IDs of objects of a backup begin.
func objectIDOf(backup layers.ID) string { return newObjectID(backup).String()[:16] }

// TestRepairFromTheVolume: what the volume has still is proved by the frame's
// id, or by what is known of its changes; a volume that has other bytes, or
// says so, is not believed.
func TestRepairFromTheVolume(t *testing.T) {
	s := newSample(t, true)
	images := s.images(t, Key{Passphrase: secret})
	image := images[s.ids[0]]
	same := func(context.Context, layers.ID) (Source, error) {
		return Source{Layers: []layers.Layer{&content{bytes: make([]byte, 5000)}, &content{bytes: image}}}, nil
	}
	other := func(context.Context, layers.ID) (Source, error) {
		return Source{Layers: []layers.Layer{&content{bytes: bytes.Repeat([]byte{7}, len(image))}}}, nil
	}
	exact := func(known bool) func(context.Context, layers.ID) (Source, error) {
		return func(context.Context, layers.ID) (Source, error) {
			return Source{Exact: func(boundary layers.ID, p []byte, off int64) (bool, error) {
				if known {
					clear(p)
					copy(p, image[off:])
				}
				return known, nil
			}}, nil
		}
	}
	for _, name := range s.packsOnly(t) {
		whole := s.objects[name]
		flipped := bytes.Clone(whole)
		flipped[headerSize+100] ^= 8
		header := bytes.Clone(whole)
		header[20] ^= 8
		for what, c := range map[string]struct {
			broken []byte
			heal   func(context.Context, layers.ID) (Source, error)
			whole  bool
		}{
			"a frame, the same bytes":      {flipped, same, true},
			"a frame, other bytes":         {flipped, other, false},
			"a frame, no source":           {flipped, nil, false},
			"a header, no source":          {header, nil, true}, // its frames are there
			"missing, the same bytes":      {nil, same, false},  // there is nothing to prove them by
			"missing, unchanged since":     {nil, exact(true), true},
			"missing, changed since":       {nil, exact(false), false},
			"a frame, unchanged since":     {flipped, exact(true), true},
			"half of it, unchanged since":  {whole[:len(whole)/2], exact(true), true},
			"too long, nothing is missing": {append(bytes.Clone(whole), 1), nil, true},
		} {
			report, store, err := s.repair(t, name, c.broken, Deep, c.heal)
			if c.whole {
				if err != nil || report.Healed == 0 || len(report.Findings) == 0 || !report.Findings[0].Repaired || len(report.Damaged) > 0 {
					t.Errorf("%s of %s: %v, %+v", what, name, err, report)
				}
				s.expectWhole(t, what, store, images)
				continue
			}
			if !errors.Is(err, ErrCorrupt) || len(report.Damaged) == 0 || report.Findings[0].Repaired || len(report.Findings[0].Backups) == 0 {
				t.Errorf("%s of %s: %v, %+v", what, name, err, report)
			}
		}
		if name != "" {
			break // the packs of the first backup are alike
		}
	}
}

// TestDamagedRepairIsFound: what a repair wrote is verified as all else, and a
// relocation that is damaged, cut, or of another name is named and not
// believed. // B15
func TestDamagedRepairIsFound(t *testing.T) {
	s := newSample(t, true)
	key := Key{Passphrase: secret}
	images := s.images(t, key)
	s.fullAgain(t)
	lost := ""
	for _, name := range s.packsOnly(t) {
		if strings.Contains(name, "/"+objectIDOf(s.ids[0])) {
			lost = name
		}
	}
	broken := bytes.Clone(s.objects[lost])
	broken[headerSize+100] ^= 8
	_, store, err := s.repair(t, lost, broken, Deep, nil)
	if err != nil {
		t.Fatal(err)
	}
	healed := &sample{objects: contents(t, store), ids: s.ids}
	tried := 0
	for _, name := range slices.Sorted(maps.Keys(healed.objects)) {
		if s.objects[name] != nil {
			continue
		}
		tried++
		for what, bad := range breakages(healed, slices.Sorted(maps.Keys(healed.objects)), name) {
			store := storeOf(t, healed.objects)
			if store.Delete(t.Context(), name); bad != nil {
				store.Put(t.Context(), name, bad)
			}
			r, err := Open(t.Context(), store, key)
			if err != nil {
				t.Fatal(err)
			}
			report, err := r.Audit(t.Context(), AuditOptions{Level: Deep})
			told := false
			for _, f := range report.Findings {
				told = told || f.Object == name || f.Object == lost
			}
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) || !told {
				t.Errorf("%s %s: %v, %+v", name, what, err, report.Findings)
			}
			healed.compareTouched(t, r, report, images, name+" "+what)
			r.Close()
		}
	}
	if tried != 2 {
		t.Errorf("%d new objects, want a pack and a relocation", tried)
	}
	// A relocation under the name of another object is none.
	for name, b := range healed.objects {
		volume, id, ok := parseRelocationName(name)
		if !ok {
			continue
		}
		r, err := Open(t.Context(), storeOf(t, healed.objects), key)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		id[19] ^= 1
		if _, err := r.parseRelocation(relocationName(volume, id), bytes.Clone(b)); err == nil {
			t.Error("a relocation under another name is read")
		}
		if _, err := r.parseRelocation(relocationName(layers.NewID(), id), bytes.Clone(b)); err == nil {
			t.Error("a relocation of another volume is read")
		}
	}
}

// TestPruneKeepsRepairs: what a repair wrote stays as long as a backup needs the
// pack that it stands for, and goes with that.
func TestPruneKeepsRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 64 << 10
		v := newVolume(512 << 10)
		ids, images := lineage(t, r, v, 1)
		name := ""
		for _, pack := range packsOf(t, store, ids[0]) {
			if pack[:2] == "p/" && (name == "" || pack < name) {
				name = pack
			}
		}
		broken := contents(t, store)[name]
		broken[headerSize+10] ^= 1
		if err := store.Put(t.Context(), name, broken); err != nil {
			t.Fatal(err)
		}
		heal := func(context.Context, layers.ID) (Source, error) {
			return Source{Layers: []layers.Layer{&content{bytes: images[ids[0]]}}}, nil
		}
		if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true, Heal: heal}); err != nil || report.Healed == 0 {
			t.Fatalf("repair: %v, %+v", err, report)
		}
		for range 3 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{})
		}
		fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		compare(t, fresh, ids[0], images[ids[0]])
		if _, err := fresh.Audit(t.Context(), AuditOptions{Level: Deep}); err != nil {
			t.Error(err)
		}
		if err := r.Delete(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(25 * time.Hour)
			prunes(t, fresh, PruneOptions{})
		}
		for name := range contents(t, store) {
			if name != headName && !strings.HasPrefix(name, slotPrefix) && !strings.Contains(name, "/k/") {
				t.Errorf("all is deleted and pruned, and %s is left", name)
			}
		}
	})
}
