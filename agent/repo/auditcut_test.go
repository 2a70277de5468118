package repo

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"varve/layers"
)

// TestAuditOfACutRepair: no inventory tells how long a pack is that a repair
// wrote. That it was cut is seen from the map, which has frames behind its end.
// B15
func TestAuditOfACutRepair(t *testing.T) {
	s := newSample(t, true)
	image := s.images(t, Key{Passphrase: secret})[s.ids[0]]
	same := func(context.Context, layers.ID) (Source, error) {
		return Source{Layers: []layers.Layer{&content{bytes: image}}}, nil
	}
	name := s.packsOnly(t)[0]
	flipped := bytes.Clone(s.objects[name])
	flipped[headerSize+100] ^= 8
	report, store, err := s.repair(t, name, flipped, Deep, same)
	if err != nil || report.Healed == 0 {
		t.Fatalf("repair: %v, %+v", err, report)
	}
	tried := 0
	for made, b := range contents(t, store) {
		if s.objects[made] != nil || !strings.HasPrefix(made, "p/") {
			continue
		}
		tried++
		store.Put(t.Context(), made, b[:len(b)/2])
		r := hostOf(t, store)
		report, err := r.Audit(t.Context(), AuditOptions{Level: Map})
		if !errors.Is(err, ErrCorrupt) || report.Count != 1 || report.Findings[0].Object != made || report.Findings[0].Offset != int64(len(b)/2) {
			t.Errorf("%s was cut: %v, %+v", made, err, report)
		}
	}
	if tried != 1 {
		t.Errorf("%d packs were made", tried)
	}
}
