package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

var smallTuning = tuning{
	journalSmall: ringStart + 64*slotSize,
	journalLarge: ringStart + 128*slotSize,
	recordBlocks: 16,
	moveBlocks:   8,
}

// modelSnapshot is what a boundary must hold.
type modelSnapshot struct {
	id     ID
	parent ID // zero: none
	mark   bool
	data   []byte // of the volume at that instant; kept for marks too, to know what changed
}

// model is the volume as byte slices.
type model struct {
	t     testing.TB
	r     *rand.Rand
	d     disk
	tune  tuning
	v     *Volume
	live  []byte
	marks []modelSnapshot // oldest first, snapshots and marks
	views []modelView
	parts []span // bytes that are compared; nil: all
	dirty bool   // written since the boundary below, or that is not known
	below ID     // the boundary that the live volume lies on; zero: none
}

func newModel(t testing.TB, d disk, r *rand.Rand, size int64, tune tuning) *model {
	t.Helper()
	if err := createVolume(d, NewID(), size, tune); err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, r: r, d: d, tune: tune, live: make([]byte, size)}
	m.open()
	return m
}

func (m *model) open() {
	m.t.Helper()
	v, err := openVolume(m.d, Options{}, m.tune)
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.v = v
}

// place returns a random range; most are aligned, some cross the end of a page.
func (m *model) place(limit int64) (off, n int64) {
	size := int64(len(m.live))
	n = 1 + m.r.Int64N(min(limit, size))
	off = m.r.Int64N(size - n + 1)
	switch m.r.IntN(4) {
	case 0:
	case 1:
		off, n = off/sectorSize*sectorSize, max(n/sectorSize*sectorSize, sectorSize)
	default:
		off, n = off/BlockSize*BlockSize, max(n/BlockSize*BlockSize, BlockSize)
	}
	return off, min(n, size-off)
}

func (m *model) write() string {
	off, n := m.place(40 * BlockSize)
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(m.r.Uint32())
	}
	if got, err := m.v.WriteAt(p, off); err != nil || got != len(p) {
		m.t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", n, off, got, err)
	}
	copy(m.live[off:], p)
	m.dirty = true
	return fmt.Sprintf("write [%d, %d)", off, off+n)
}

func (m *model) zero() string {
	off, n := m.place(600 * BlockSize)
	if err := m.v.WriteZeroes(off, n); err != nil {
		m.t.Fatalf("WriteZeroes(%d, %d): %v", off, n, err)
	}
	clear(m.live[off : off+n])
	m.dirty = true
	return fmt.Sprintf("zero [%d, %d)", off, off+n)
}

func (m *model) flush() string {
	if err := m.v.Flush(); err != nil {
		m.t.Fatalf("Flush: %v", err)
	}
	return "flush"
}

func (m *model) snapshot() string {
	id := NewID()
	if err := m.v.Snapshot(id); err != nil {
		m.t.Fatalf("Snapshot: %v", err)
	}
	m.sealed(id)
	return "snapshot " + id.String()
}

// sealed says that the live volume is a snapshot now.
func (m *model) sealed(id ID) {
	m.marks = append(m.marks, modelSnapshot{id: id, parent: m.below, data: slices.Clone(m.live)})
	m.below, m.dirty = id, false
}

func (m *model) revert() string {
	i := m.pick(false)
	if i < 0 {
		return "revert nothing"
	}
	safety, to := NewID(), m.marks[i]
	if err := m.v.Revert(to.id, safety); err != nil {
		m.t.Fatalf("Revert(%s): %v", to.id, err)
	}
	m.sealed(safety)
	m.reverted(to)
	return fmt.Sprintf("revert to %s, before that %s", to.id, safety)
}

// reverted says that the live volume is what a snapshot is.
func (m *model) reverted(to modelSnapshot) {
	size := len(m.live)
	m.live = append(slices.Clone(to.data), make([]byte, size-len(to.data))...)
	m.below, m.dirty = to.id, false
}

func (m *model) pick(mark bool) int {
	var list []int
	for i, s := range m.marks {
		if s.mark == mark {
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return -1
	}
	return list[m.r.IntN(len(list))]
}

func (m *model) delete() string {
	i := m.pick(false)
	if i < 0 {
		return "delete nothing"
	}
	keep := m.r.IntN(2) == 0
	id := m.marks[i].id
	if err := m.v.DeleteSnapshot(id, keep); err != nil {
		m.t.Fatalf("DeleteSnapshot(%s, %v): %v", id, keep, err)
	}
	if keep {
		m.marks[i].mark = true
	} else {
		m.remove(i)
	}
	return fmt.Sprintf("delete %s, keep mark %v", id, keep)
}

func (m *model) dropMark() string {
	i := m.pick(true)
	if i < 0 {
		return "drop nothing"
	}
	id := m.marks[i].id
	if err := m.v.DropMark(id); err != nil {
		m.t.Fatalf("DropMark(%s): %v", id, err)
	}
	m.remove(i)
	return "drop mark " + id.String()
}

func (m *model) remove(i int) {
	gone := m.marks[i]
	m.marks = slices.Delete(m.marks, i, i+1)
	if m.below == gone.id {
		m.below, m.dirty = gone.parent, true // not known: what it had may be above the one before
	}
	for j := range m.marks {
		if m.marks[j].parent == gone.id {
			m.marks[j].parent = gone.parent
		}
	}
}

func (m *model) grow() string {
	size := int64(len(m.live)) + sectorSize*m.r.Int64N(300)
	if err := m.v.Grow(size); err != nil {
		m.t.Fatalf("Grow(%d): %v", size, err)
	}
	m.live = append(slices.Clone(m.live), make([]byte, size-int64(len(m.live)))...)
	return fmt.Sprintf("grow to %d", size)
}

func (m *model) reopen() string {
	m.closeViews()
	if err := m.v.Close(); err != nil {
		m.t.Fatalf("Close: %v", err)
	}
	m.open()
	return "reopen"
}

func (m *model) tidy() string {
	if err := m.v.tidy(); err != nil {
		m.t.Fatalf("tidy: %v", err)
	}
	return "tidy"
}

func (m *model) tidyStep() string {
	if _, err := m.v.tidyStep(); err != nil {
		m.t.Fatalf("tidy step: %v", err)
	}
	return "tidy step"
}

func (m *model) checkpoint() string {
	if err := errors.Join(m.v.writeBack(), m.v.checkpoint()); err != nil {
		m.t.Fatalf("checkpoint: %v", err)
	}
	return "checkpoint"
}

func (m *model) growJournal() string {
	if err := m.v.growJournal(); err != nil {
		m.t.Fatalf("grow journal: %v", err)
	}
	return "grow journal"
}

// step does one random thing and says what.
func (m *model) step() string {
	switch n := m.r.IntN(100); {
	case n < 38:
		return m.write()
	case n < 46:
		return m.zero()
	case n < 58:
		return m.flush()
	case n < 66:
		return m.snapshot()
	case n < 72:
		return m.delete()
	case n < 74:
		return m.dropMark()
	case n < 75:
		return m.revert()
	case n < 77:
		return m.grow()
	case n < 79:
		return m.reopen()
	case n < 82:
		return m.tidy()
	case n < 88:
		return m.tidyStep()
	case n < 90:
		return m.checkpoint()
	case n < 91:
		return m.growJournal()
	case n < 94:
		return m.openView()
	case n < 97:
		return m.openDiff()
	default:
		return m.closeView()
	}
}

func differ(a, b []byte) int {
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// checkLive compares the volume with the model.
func (m *model) checkLive() {
	m.t.Helper()
	for _, s := range m.spans(int64(len(m.live))) {
		got := make([]byte, s.end-s.start)
		if _, err := m.v.ReadAt(got, s.start); err != nil {
			m.t.Fatalf("ReadAt: %v", err)
		}
		if at := differ(got, m.live[s.start:s.end]); at >= 0 {
			m.t.Fatalf("volume differs at %d: got %#x", s.start+int64(at), got[at])
		}
	}
	if !m.dirty && m.below.IsZero() == m.v.Clean() {
		m.t.Fatalf("Clean() = %v on boundary %s and no write since", m.v.Clean(), m.below)
	}
}

// checkAll compares everything with the model.
func (m *model) checkAll() {
	m.t.Helper()
	m.checkLive()
	list := m.v.Boundaries()
	if len(list) != len(m.marks) {
		m.t.Fatalf("%d boundaries, want %d", len(list), len(m.marks))
	}
	for i, s := range m.marks {
		live := m.isLive(s.id)
		if list[i].ID != s.id || list[i].Parent != s.parent || list[i].Mark != s.mark || list[i].Live != live || list[i].Size != int64(len(s.data)) {
			m.t.Fatalf("boundary %d is %+v, want %s on %s, mark %v, live %v, size %d", i, list[i], s.id, s.parent, s.mark, live, len(s.data))
		}
		if s.mark {
			continue
		}
		w, err := m.v.View(s.id)
		if err != nil {
			m.t.Fatalf("View: %v", err)
		}
		m.checkView(w, s.data)
		if err := w.Close(); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, o := range m.views {
		m.checkView(o.w, o.want)
	}
	m.checkHistory()
	if err := sound(m.v); err != nil {
		m.t.Fatalf("Check: %v", err)
	}
}

// isLive reports whether the live volume lies on a boundary.
func (m *model) isLive(id ID) bool {
	at := m.below
	for at != id && !at.IsZero() {
		at = m.marks[slices.IndexFunc(m.marks, func(s modelSnapshot) bool { return s.id == at })].parent
	}
	return at == id
}

// testRand is for tests that need some data, whatever it is.
func testRand() *rand.Rand { return rand.New(rand.NewPCG(1, 1)) }

// sound returns what Check finds, as an error.
func sound(v *Volume) error {
	report, err := v.Check(context.Background(), CheckOptions{})
	for _, f := range report.Findings {
		err = errors.Join(err, f)
	}
	return err
}
