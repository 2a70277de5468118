package agent

import (
	"context"
	"io"

	"varve/agent/repo"
	"varve/layers"
)

// A healing offers what a volume of this host has still to a repair of its
// backups.
type healing struct {
	data  *layers.Volume
	views map[layers.ID]*layers.View // by snapshot
}

// healFrom opens a volume for a repair. One that is not there, or cannot be
// read now, offers nothing.
func (a *Agent) healFrom(_ context.Context, id layers.ID) (repo.Source, error) {
	record, v, err := a.findVolume(id.String())
	if ReasonOf(err) == NotFound {
		return repo.Source{}, nil
	}
	if err != nil {
		return repo.Source{}, err
	}
	h := &healing{views: map[layers.ID]*layers.View{}}
	a.mu.Lock()
	data, err := v.usable(record)
	release := func() {}
	if err == nil {
		release = a.hold(v, v.id) // It is not deleted or restored meanwhile.
	}
	a.mu.Unlock()
	if err != nil {
		a.log.Warn("a repair of backups goes on without their volume", "volume", record.Name, "error", err)
		return repo.Source{}, nil
	}
	h.data = data
	s := repo.Source{Layers: []layers.Layer{data}, Exact: h.exact}
	for _, b := range data.Boundaries() {
		if b.Mark {
			continue
		}
		view, err := data.View(b.ID)
		if err != nil {
			continue // It was deleted since.
		}
		h.views[b.ID] = view
		s.Layers = append(s.Layers, view)
	}
	s.Close = func() {
		for _, view := range h.views {
			view.Close() // Only read.
		}
		release()
	}
	return s, nil
}

// exact reads what the volume held at a boundary: from the snapshot there, or
// from the live volume or another snapshot if nothing was written there between
// the two. The live volume is read first and asked about changes after that, so
// that a write that comes in between is seen.
func (h *healing) exact(boundary layers.ID, p []byte, off int64) (bool, error) {
	if view, is := h.views[boundary]; is && readBlock(view, p, off) {
		return true, nil
	}
	if readBlock(h.data, p, off) && h.unchanged(boundary, layers.ID{}, off, int64(len(p))) {
		return true, nil
	}
	for id, view := range h.views {
		if readBlock(view, p, off) && h.unchanged(boundary, id, off, int64(len(p))) {
			return true, nil
		}
	}
	return false, nil
}

// unchanged reports whether it is known that nothing was written between two
// boundaries; at may be zero for the live volume.
func (h *healing) unchanged(from, at layers.ID, off, n int64) bool {
	for _, err := range h.data.Changes(from, at, off, n) {
		_ = err // The boundary may be gone: then nothing is known.
		return false
	}
	return true
}

// readBlock fills p, with zeros past the end of the layer. A layer that ends
// before off has nothing to say.
func readBlock(l layers.Layer, p []byte, off int64) bool {
	n, err := l.ReadAt(p, off)
	if n == 0 || n < len(p) && err != io.EOF {
		return false
	}
	clear(p[n:])
	return true
}
