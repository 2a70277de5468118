package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// A mapped is a repository whose leaves are of every origin: those of a full
// backup, increments on them, increments with blocks that became zero, and bases
// that were merged; all in packs of leaves of their own.
type mapped struct {
	objects map[string][]byte
	ids     []layers.ID
	images  map[layers.ID]*sparseLayer
	at      map[layers.ID]*sparseLayer // by boundary
	zeroed  map[sessionID]bool         // backups that made blocks zero
}

func newMapped(t *testing.T) *mapped {
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 128 << 10
	m := &mapped{images: make(map[layers.ID]*sparseLayer), at: make(map[layers.ID]*sparseLayer), zeroed: make(map[sessionID]bool)}
	v, parent := newSparse(3), layers.ID{}
	for step := range int64(7) {
		seed := uint64(step) << 32
		switch step {
		case 0:
			v.write(0, 64, seed)
			v.write(spanBlocks+100, 40, seed)
			v.write(2*spanBlocks+5000, 1, seed)
		default: // two spans of three, more than a pack
			for i := range int64(30) {
				v.write(i*(90+step), 1, seed)
			}
			v.write(step%3*spanBlocks+7000*step, 33, seed)
		}
		zeros := step == 2 || step == 5
		if zeros {
			v.zero(3, 5)
			v.zero(spanBlocks+101, 20)
		}
		b := v.backup(t, r, parent)
		parent = b.ID
		m.ids = append(m.ids, b.ID)
		m.images[b.ID], m.at[b.Boundary] = v.content(), v.content()
		m.zeroed[sessionOf(b.ID)] = zeros
	}
	m.objects = contents(t, store)
	return m
}

// volume knows all that the volume held at each boundary, as a chain with a
// snapshot for each backup does.
func (m *mapped) volume(context.Context, layers.ID) (Source, error) {
	return Source{Exact: func(boundary layers.ID, p []byte, off int64) (bool, error) {
		l := m.at[boundary]
		if l == nil {
			return false, nil
		}
		copy(p, l.block(off/layers.BlockSize))
		return true, nil
	}}, nil
}

// repair lets a store be repaired, and compares all that restores then.
func (m *mapped) repair(t *testing.T, what string, objects map[string][]byte, heal func(context.Context, layers.ID) (Source, error)) (AuditReport, map[string][]byte) {
	t.Helper()
	store := storeOf(t, objects)
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true, Heal: heal})
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
	}
	r.Close()
	fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	after, err := fresh.Audit(t.Context(), AuditOptions{Level: Deep})
	if (err == nil) != (report.Count == 0) || len(after.Damaged) != len(report.Damaged) {
		t.Errorf("%s: repaired with %d places and %d backups left, an audit finds %v and %d", what, report.Count, len(report.Damaged), err, len(after.Damaged))
	}
	for id, image := range m.images {
		lost := image.restoresAs(t, fresh, id, what)
		told := slices.ContainsFunc(report.Damaged, func(b Touched) bool { return b.Backup == id })
		if told != (len(lost) > 0) {
			t.Errorf("%s: of backup %s are lost %v, told is %v", what, id, lost, told)
		}
		if _, err := fresh.Verify(t.Context(), id, VerifyOptions{Level: Map}); err != nil && report.Count == 0 {
			t.Errorf("%s: verify after the repair: %v", what, err)
		}
	}
	return report, contents(t, store)
}

// leafPacks are the packs of leaves.
func (m *mapped) leafPacks() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(name, "m/") {
			names = append(names, name)
		}
	}
	return names
}

// TestRepairLeaves: every pack of leaves is broken in every way, one after the
// other. With nothing but the store, all leaves come back but those that say
// what became zero; where the volume knows what it held, those too. What is
// restored is exact in any case, or told to be lost. // B15
func TestRepairLeaves(t *testing.T) {
	m := newMapped(t)
	names := slices.Sorted(maps.Keys(m.objects))
	s := &sample{objects: m.objects}
	rebuilt := int64(0)
	for i, name := range m.leafPacks() {
		id, _ := packOf(name)
		tried := -1
		for what, broken := range breakages(s, names, name) {
			if tried++; i > 0 && broken != nil && tried%7 != i { // in turn
				continue
			}
			objects := maps.Clone(m.objects)
			if delete(objects, name); broken != nil {
				objects[name] = broken
			}
			what := name + " " + what
			report, _ := m.repair(t, what+", no volume", objects, nil)
			if !m.zeroed[id.id.session()] && report.Count > 0 {
				t.Errorf("%s: %d places are left of a map without zeros: %+v", what, report.Count, report.Findings)
			}
			report, healed := m.repair(t, what, objects, m.volume)
			if report.Count > 0 || report.Rebuilt == 0 {
				t.Errorf("%s: rebuilt %d, left %d: %+v", what, report.Rebuilt, report.Count, report.Findings)
			}
			rebuilt += report.Rebuilt
			for old, b := range objects {
				if !bytes.Equal(healed[old], b) {
					t.Errorf("%s: %s was changed", what, old)
				}
			}
		}
	}
	t.Logf("%d packs of leaves, %d parts of maps made again", len(m.leafPacks()), rebuilt)
}

// TestLeavesAreNotMadeUp: where a pack of the backup is missing beside the leaf,
// or says something else, the leaf would be silent about what was in it, and that
// would read as zeros, or as what was there before. It is left damaged. // B15
func TestLeavesAreNotMadeUp(t *testing.T) {
	m := newMapped(t)
	for _, leaves := range m.leafPacks() {
		of, _ := packOf(leaves)
		first := true
		for _, data := range slices.Sorted(maps.Keys(m.objects)) {
			id, ok := packOf(data)
			if !ok || id.where != inData || id.id.session() != of.id.session() {
				continue
			}
			ways := [][]byte{flipped(m.objects[data], len(m.objects[data])-30)}
			if first {
				ways, first = [][]byte{nil}, false
			}
			for _, broken := range ways {
				objects := maps.Clone(m.objects)
				delete(objects, leaves)
				if delete(objects, data); broken != nil {
					objects[data] = broken
				}
				what := fmt.Sprintf("%s missing, %s with %d bytes", leaves, data, len(broken))
				if report, _ := m.repair(t, what, objects, nil); len(report.Damaged) == 0 {
					t.Errorf("%s: nothing is told to be lost", what)
				}
				// That the volume knows what was zero does not say what was not.
				if report, _ := m.repair(t, what+", with the volume", objects, m.volume); len(report.Damaged) == 0 {
					t.Errorf("%s: nothing is told to be lost, with the volume", what)
				}
			}
		}
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 4
	return b
}
