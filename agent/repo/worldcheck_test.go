package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"varve/layers"
)

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost == nil {
		w.lost = err
	}
}

func (w *world) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// check reads every backup that is there, with a host that sees all.
func (w *world) check() {
	h := w.newHost(1)
	h.calm = true
	r, err := w.open(h)
	if err != nil {
		w.fail(err)
		return
	}
	defer r.Close()
	l, err := r.list(context.Background(), volumesRoot)
	if err != nil {
		w.fail(err)
		return
	}
	for _, root := range l.roots {
		if l.deleted[root.name.backup] {
			continue
		}
		got, err := readWhole(r, root.name.backup)
		if err != nil {
			w.fail(err)
		} else if at := differ(got, w.images[root.name.backup]); at >= 0 {
			w.fail(fmt.Errorf("backup %s differs at %d", root.name.backup, at))
		}
	}
}

func readWhole(r *Repo, id layers.ID) ([]byte, error) {
	l, err := r.Layer(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
}

// settle prunes until nothing is copied any more, and for three graces then. It
// returns what is left that nothing needs.
func (w *world) settle() (left []string) {
	h := w.newHost(2)
	h.calm = true
	r, err := w.open(h)
	if err != nil {
		w.fail(err)
		return nil
	}
	defer r.Close()
	prune := func(below int) PruneReport {
		report, err := r.Prune(context.Background(), PruneOptions{RepackBelow: below})
		if err != nil {
			w.fail(fmt.Errorf("prune: %w", err))
		}
		return report
	}
	// What was copied may be copied again, with more of its kind, until that is
	// all in few packs.
	began := time.Now()
	for last := began; time.Since(last) <= PruneGrace+sessionDead && w.failed() == nil; time.Sleep(3 * time.Hour) {
		if prune(95).Repacked.Objects > 0 {
			last = time.Now()
		}
		if time.Since(began) > 40*PruneGrace {
			w.fail(errors.New("repacking comes to no end"))
		}
	}
	for began = time.Now(); time.Since(began) <= 3*PruneGrace && w.failed() == nil; time.Sleep(3 * time.Hour) {
		if report := prune(95); time.Since(began) > PruneGrace && len(report.Kept) > 0 {
			w.fail(fmt.Errorf("prune: %w", errors.Join(report.Kept...)))
		}
	}
	l, err := r.list(context.Background(), volumesRoot)
	if err != nil {
		w.fail(err)
		return nil
	}
	// What a backup wrote and does not name goes with it, unless it was moved.
	needed, stays, moved := make(map[objectID]bool), make(map[sessionID]bool), make(map[objectID]bool)
	for _, root := range l.roots {
		stays[sessionOf(root.name.backup)] = true
		if err := w.reach(r, root, needed); err != nil {
			w.fail(err)
		}
	}
	for _, volume := range w.volumes {
		for _, o := range r.moves.known(volume) {
			for i := range o.packs {
				moved[o.packs[i].id] = true
			}
		}
	}
	for name := range w.past {
		there, _ := r.exists(context.Background(), name)
		if !there {
			continue
		}
		if _, id, ok := parsePack(name); ok && !needed[id] && (!stays[id.session()] || moved[id]) ||
			strings.HasPrefix(name, sessionRoot) || strings.Contains(name, "/d/") || strings.HasPrefix(name, listRoot) {
			left = append(left, name)
		}
	}
	return left
}

// reach adds the packs that a root needs, read in another way than pruning
// does: through what a reader would fetch, and the packs of its leaves.
func (w *world) reach(r *Repo, listed listedRoot, needed map[objectID]bool) error {
	root, err := r.readRoot(context.Background(), listed)
	if err != nil {
		return err
	}
	if _, err := r.loadMoves(context.Background(), root.name.volume); err != nil {
		return err
	}
	for _, row := range root.spans.rows {
		parts := make([]*leaf, len(row.leaves))
		if err := r.readLeaves(context.Background(), root.name.volume, row, parts); err != nil {
			return err
		}
		for i, part := range parts {
			needed[r.placeOf(row.leaves[i].place(sectionLeaf)).pack.id] = true
			for _, frame := range r.placed(part.wantedOf(part.first, part.first+part.blocks)) {
				needed[frame.pack.id] = true
			}
		}
	}
	if root.inventory != nil {
		needed[r.placeOf(root.inventory.place(sectionInventory)).pack.id] = true
	}
	return nil
}
