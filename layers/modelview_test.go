package layers

import (
	"fmt"
	"slices"
	"testing"
)

// modelView is an open view, and the bytes that it must go on to have.
type modelView struct {
	w    *View
	want []byte
}

func (m *model) openView() string {
	i := m.pick(false)
	if i < 0 || len(m.views) > 3 {
		return "view nothing"
	}
	w, err := m.v.View(m.marks[i].id)
	if err != nil {
		m.t.Fatalf("View: %v", err)
	}
	m.views = append(m.views, modelView{w, m.marks[i].data})
	return "view " + m.marks[i].id.String()
}

func (m *model) openDiff() string {
	i := m.pick(false)
	if i < 0 || len(m.views) > 3 {
		return "diff nothing"
	}
	from, to := m.marks[m.r.IntN(len(m.marks))], m.marks[i]
	w, err := m.v.Diff(from.id, to.id)
	if err != nil {
		m.t.Fatalf("Diff: %v", err)
	}
	m.checkDiff(w, from.data, to.data)
	m.views = append(m.views, modelView{w, overlayOf(m.t, w, from.data, to.data)})
	return fmt.Sprintf("diff %s %s", from.id, to.id)
}

// spans returns the parts of size bytes that are compared.
func (m *model) spans(size int64) []span {
	if m.parts == nil {
		return []span{{0, size}}
	}
	var list []span
	for _, p := range m.parts {
		if p.start < size {
			list = append(list, span{p.start, min(p.end, size)})
		}
	}
	return list
}

// checkDiff checks that a diff, laid over the one content, gives the other.
func (m *model) checkDiff(w *View, from, to []byte) {
	m.t.Helper()
	for _, s := range m.spans(int64(len(to))) {
		got := make([]byte, s.end-s.start)
		if s.start < int64(len(from)) {
			copy(got, from[s.start:])
		}
		for e, err := range w.Extents(s.start, s.end-s.start) {
			if err != nil {
				m.t.Fatalf("diff: %v", err)
			}
			if _, err := w.ReadAt(got[e.Off-s.start:e.End()-s.start], e.Off); err != nil {
				m.t.Fatalf("diff: read %+v: %v", e, err)
			}
		}
		if at := differ(got, to[s.start:s.end]); at >= 0 {
			m.t.Fatalf("diff laid over the older content differs at %d", s.start+int64(at))
		}
	}
}

// overlayOf returns what a diff reads as on its own.
func overlayOf(t testing.TB, w *View, from, to []byte) []byte {
	t.Helper()
	p := make([]byte, len(to))
	for e, err := range w.Extents(0, w.Size()) {
		if err != nil {
			t.Fatalf("diff: %v", err)
		}
		copy(p[e.Off:e.End()], to[e.Off:e.End()])
	}
	return p
}

func (m *model) closeView() string {
	if len(m.views) == 0 {
		return "close nothing"
	}
	i := m.r.IntN(len(m.views))
	if err := m.views[i].w.Close(); err != nil {
		m.t.Fatalf("close view: %v", err)
	}
	m.views = slices.Delete(m.views, i, i+1)
	return "close view"
}

func (m *model) closeViews() {
	for len(m.views) > 0 {
		m.closeView()
	}
}

func (m *model) checkView(w *View, want []byte) {
	m.t.Helper()
	if w.Size() != int64(len(want)) {
		m.t.Fatalf("view has %d bytes, want %d", w.Size(), len(want))
	}
	for _, s := range m.spans(int64(len(want))) {
		got := make([]byte, s.end-s.start)
		if _, err := w.ReadAt(got, s.start); err != nil {
			m.t.Fatalf("view: ReadAt: %v", err)
		}
		if at := differ(got, want[s.start:s.end]); at >= 0 {
			m.t.Fatalf("view of %d bytes differs at %d: got %#x", len(want), s.start+int64(at), got[at])
		}
	}
}
