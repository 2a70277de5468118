package repo

import (
	"context"
	"iter"
	"strings"

	"varve/agent/object"
)

// A flaw is a rule of pruning that the simulated hosts break. The world must
// find each.
type flaw string

const (
	sound          flaw = ""
	hasty          flaw = "what is condemned goes in the next run" // harmless by itself: see design.md
	blindToRunning flaw = "hasty, and sessions are not looked at"
	rootsFirst     flaw = "hasty, and roots are listed before sessions"
	trusting       flaw = "hasty, and writers do not ask for their footing by name"
	greedy         flaw = "hasty, and resumed backups do not read condemned lists"
)

func (f flaw) hurries() bool { return f != sound }

// A flawed store is what a host with a flaw prunes with.
type flawed struct {
	*host
	own   string // the session of the run
	roots []object.Info
}

func (f *flawed) Put(ctx context.Context, name string, b []byte) error {
	if strings.HasPrefix(name, sessionRoot) {
		f.own = name
	}
	return f.host.Put(ctx, name, b)
}

func (f *flawed) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		switch {
		case prefix == sessionRoot && f.world.flaw == rootsFirst:
			if err := f.request(ctx, "list", volumesRoot); err != nil {
				yield(object.Info{}, err)
				return
			}
			f.roots = f.listing(volumesRoot)
		case prefix == volumesRoot && f.world.flaw == rootsFirst:
			for _, info := range f.roots {
				if !yield(info, nil) {
					return
				}
			}
			return
		}
		for info, err := range f.host.List(ctx, prefix) {
			if prefix == sessionRoot && f.world.flaw == blindToRunning && info.Name != f.own {
				continue
			}
			if prefix == listRoot && f.world.flaw.hurries() {
				info.Modified = info.Modified.Add(-PruneGrace)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// A greedy store hides condemned lists from writers.
type greedyStore struct{ *host }

func (g greedyStore) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	if prefix == listRoot {
		return func(func(object.Info, error) bool) {}
	}
	return g.host.List(ctx, prefix)
}
