package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/catalog"
)

// startHost starts a daemon of that host name with the target t1.
func startHost(t *testing.T, w *world, name string) *Agent {
	t.Helper()
	c := w.config(t.TempDir())
	c.Host = name
	a := must(Start(context.Background(), c))(t)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	addTarget(t, a, "t1")
	return a
}

func syncs(t *testing.T, a *Agent) {
	t.Helper()
	if err := a.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
}

// incremental makes a backup and returns it with its operation.
func incremental(t *testing.T, a *Agent, volume, name string) (BackupView, catalog.Operation) {
	t.Helper()
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: volume, Name: name, Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	last := succeed(t, a, op)
	return must(a.Backup(t.Context(), b.ID.String()))(t), last
}

// forkTexts are the forks that the list of backups tells of, sorted.
func forkTexts(t *testing.T, a *Agent) []string {
	t.Helper()
	var texts []string
	for _, b := range must(a.Backups(t.Context()))(t) {
		for _, f := range b.Forks {
			texts = append(texts, f.Text())
		}
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// C5: host B takes a volume over and goes on from the backup with what changed
// since; host A comes back, is told, loses nothing, and the fork is shown by both.
func TestLineageMovesToAnotherHost(t *testing.T) {
	w := newWorld(t)
	here, there := startHost(t, w, "alpha"), startHost(t, w, "beta")
	v := createVolume(t, here, "v", 16*mib)
	write(t, here, "v", 1, 0, 8*mib)
	backUp(t, here, NewBackup{Volume: "v", Name: "a1"})
	write(t, here, "v", 2, mib, 64<<10)
	a2, _ := incremental(t, here, "v", "a2")
	want := content(t, here, "v")

	syncs(t, there)
	moved := restore(t, there, "a2", RestoreRequest{Adopt: true})
	if moved.ID != v.ID || moved.Name != "v" || moved.Status != catalog.Available {
		t.Errorf("adopted: %+v", moved.Volume)
	}
	same(t, "the adopted volume", content(t, there, "v"), want)
	nothingTemporary(t, there)
	if snapshots, marks := boundaries(t, there, "v"); len(snapshots) != 0 || len(marks) != 1 || marks[0] != a2.BoundaryID {
		t.Errorf("snapshots %v, marks %v, want the mark %s alone", snapshots, marks, a2.BoundaryID)
	}

	// Nothing was written: the first backup there is empty.
	b3, op := incremental(t, there, "v", "b3")
	if b3.ParentID != a2.ID || b3.Changed != 0 || b3.ObjectCount != 1 || op.Note != "" || b3.Host != "beta" || b3.Epoch != 2 {
		t.Errorf("b3: %+v, note %q", b3, op.Note)
	}
	write(t, there, "v", 3, 4*mib, 64<<10)
	b4, _ := incremental(t, there, "v", "b4")
	if b4.ParentID != b3.ID || b4.Changed != 64<<10 || b4.Stored > mib {
		t.Errorf("b4: %+v", b4)
	}
	after := content(t, there, "v")

	// A is told by its list; by its next backup, which is whole; and the logs say so.
	if over := must(here.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 0 {
		t.Errorf("before it could know: %+v", over)
	}
	syncs(t, here)
	over := must(here.Volume(t.Context(), "v"))(t).TakenOver
	if len(over) != 1 || over[0].Host != "beta" || over[0].After != a2.ID || !strings.Contains(over[0].Text(), "host beta took over its backups in target t1") || !strings.Contains(over[0].Text(), "a2") {
		t.Errorf("taken over: %+v", over)
	}
	if !strings.Contains(w.logged(), "another host has taken over") {
		t.Error("the log does not tell of the takeover")
	}
	if over := must(there.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 0 {
		t.Errorf("whoever took it over is told %+v", over)
	}
	for _, a := range []*Agent{here, there} {
		if texts := forkTexts(t, a); len(texts) != 0 {
			t.Errorf("forks before there is one: %q", texts)
		}
	}
	write(t, here, "v", 4, 2*mib, 64<<10)
	a5, op := incremental(t, here, "v", "a5")
	if a5.ParentID != a2.ID || a5.Changed != 64<<10 || a5.Epoch != 1 || !strings.Contains(op.Note, "host beta took over") || !strings.Contains(op.Note, "varve volume adopt v") {
		t.Errorf("a5: %+v, note %q", a5, op.Note)
	}
	syncs(t, there)
	const fork = "forked after backup a2: host alpha made a5; host beta made b3, b4"
	for _, a := range []*Agent{here, there} {
		if texts := forkTexts(t, a); len(texts) != 1 || texts[0] != fork {
			t.Errorf("forks %q, want %q", texts, fork)
		}
		same(t, "a2", imageContent(t, a, a2.ID), want)
		same(t, "a5", imageContent(t, a, a5.ID), content(t, here, "v"))
		same(t, "b4", imageContent(t, a, b4.ID), after)
	}

	// Retention looks at each side for itself.
	decisions, _, err := here.ExpireBackups(t.Context(), Expiry{Volume: "v", Keep: Retention{Last: 1}, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, d := range decisions {
		if d.Keep() {
			kept = append(kept, d.Backup.Name)
		}
	}
	slices.Sort(kept)
	if !slices.Equal(kept, []string{"a5", "b4"}) {
		t.Errorf("the last is kept as %q", kept)
	}

	// A takes the newest of B back, in place: it goes on from there, and the fork
	// ends with its last backup.
	restore(t, here, "b4", RestoreRequest{Volume: "v", Force: true, Adopt: true})
	a6, op := incremental(t, here, "v", "a6")
	if a6.ParentID != b4.ID || a6.Changed != 0 || a6.Epoch != 3 || op.Note != "" {
		t.Errorf("a6: %+v, note %q", a6, op.Note)
	}
	same(t, "what was taken back", content(t, here, "v"), after)
	syncs(t, there)
	if over := must(there.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 1 || over[0].Host != "alpha" || over[0].AfterName != "b4" {
		t.Errorf("B is told %+v", over)
	}
	succeed(t, here, must(here.DeleteBackup(t.Context(), "a5", false))(t))
	if texts := forkTexts(t, here); len(texts) != 0 {
		t.Errorf("forks after one side is deleted: %q", texts)
	}
}

// C5: two hosts adopt one volume at once; both go on, and that is shown.
func TestTwoHostsAdopt(t *testing.T) {
	w := newWorld(t)
	lost := startHost(t, w, "alpha")
	createVolume(t, lost, "v", mib)
	write(t, lost, "v", 1, 0, mib)
	backUp(t, lost, NewBackup{Volume: "v", Name: "base"})
	for _, name := range []string{"beta", "gamma"} {
		a := startHost(t, w, name)
		restore(t, a, "base", RestoreRequest{Adopt: true, Name: "mine"})
		write(t, a, "mine", 2, 0, 4096)
		b, op := incremental(t, a, "mine", name+"1")
		if !b.Incremental() || b.Changed != 4096 || op.Note != "" {
			t.Errorf("%s: %+v, note %q", name, b, op.Note)
		}
	}
	syncs(t, lost)
	const fork = "forked after backup base: host beta made beta1; host gamma made gamma1"
	if texts := forkTexts(t, lost); len(texts) != 1 || texts[0] != fork {
		t.Errorf("forks %q, want %q", texts, fork)
	}
	if over := must(lost.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 1 || over[0].Host != "gamma" {
		t.Errorf("told of %+v, want of the last one", over)
	}
}

// The volume is lost, or goes back in time, on its own host.
func TestRestoreKeepsTheLineage(t *testing.T) {
	_, a := startWithTarget(t)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 2*mib)
	b1 := backUp(t, a, NewBackup{Volume: "v", Name: "b1"})
	old := content(t, a, "v")
	write(t, a, "v", 2, 0, 2*mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b2", Incremental: true})

	restore(t, a, "b1", RestoreRequest{Volume: "v", Force: true})
	write(t, a, "v", 3, mib, 4096)
	b3, op := incremental(t, a, "v", "b3")
	if b3.ParentID != b1.ID || b3.Changed != 4096 || op.Note != "" || b3.Epoch != 1 {
		t.Errorf("after a restore in place: %+v, note %q", b3, op.Note)
	}
	same(t, "b3", imageContent(t, a, b3.ID), content(t, a, "v"))
	restore(t, a, "b1", RestoreRequest{Volume: "v", Force: true}) // its mark is gone, or there again
	restore(t, a, "b1", RestoreRequest{Volume: "v", Force: true})
	b4, _ := incremental(t, a, "v", "b4")
	if b4.ParentID != b1.ID || b4.Changed != 0 {
		t.Errorf("after two: %+v", b4)
	}

	// With a snapshot under the backup's boundary, and a volume that grew.
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	s := backUp(t, a, NewBackup{Volume: "v", Name: "of-s", Snapshot: "s"})
	write(t, a, "v", 5, 0, 4096)
	restore(t, a, "of-s", RestoreRequest{Volume: "v", Force: true})
	if snapshots, _ := boundaries(t, a, "v"); !slices.Contains(snapshots, s.BoundaryID) {
		t.Error("a restore took a snapshot away")
	}
	b5, _ := incremental(t, a, "v", "b5")
	same(t, "b5", imageContent(t, a, b5.ID), old)
	must(a.GrowVolume(t.Context(), "v", 8*mib))(t)
	write(t, a, "v", 6, 6*mib, mib)
	restore(t, a, "b5", RestoreRequest{Volume: "v", Force: true})
	b6, _ := incremental(t, a, "v", "b6")
	if b6.ParentID != b5.ID || b6.Size != 8*mib {
		t.Errorf("of a volume that grew: %+v", b6)
	}
	same(t, "b6", imageContent(t, a, b6.ID), append(slices.Clone(old), make([]byte, 4*mib)...))
	if texts := forkTexts(t, a); len(texts) != 0 {
		t.Errorf("one host forks with itself: %q", texts)
	}

	// Lost altogether.
	if err := a.DeleteVolume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	again := restore(t, a, "b5", RestoreRequest{Adopt: true})
	if again.ID != v.ID {
		t.Errorf("adopted as %s, was %s", again.ID, v.ID)
	}
	if b7, op := incremental(t, a, "v", "b7"); b7.ParentID != b5.ID || b7.Changed != 0 || op.Note != "" {
		t.Errorf("b7: %+v, note %q", b7, op.Note)
	}
}

// What cannot be adopted is refused, and leaves nothing.
func TestAdoptIsRefused(t *testing.T) {
	w := newWorld(t)
	here, there := startHost(t, w, "alpha"), startHost(t, w, "beta")
	v := createVolume(t, here, "v", mib)
	createVolume(t, here, "other", mib)
	createVolume(t, here, "fresh", mib)
	write(t, here, "v", 1, 0, mib)
	backUp(t, here, NewBackup{Volume: "v", Name: "b"})
	adopt := func(a *Agent, r RestoreRequest) error {
		r.Adopt = true
		_, _, err := a.RestoreBackup(t.Context(), "b", r)
		return err
	}
	wantError(t, adopt(here, RestoreRequest{}), Conflict, "here already, as v", "--force")
	wantError(t, adopt(here, RestoreRequest{Volume: "other", Force: true}), Invalid, "other", "its own")
	_, err := here.AdoptVolume(t.Context(), "fresh", "")
	wantError(t, err, Invalid, "nothing to take over")
	_, err = here.AdoptVolume(t.Context(), "nobody", "")
	wantError(t, err, NotFound)

	syncs(t, there)
	g := w.store(url("t1")).shut("get")
	_, op, err := there.RestoreBackup(t.Context(), "b", RestoreRequest{Adopt: true})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	wantError(t, adopt(there, RestoreRequest{}), Conflict)
	close(g.opened)
	succeed(t, there, op)
	if all := must(there.Volumes(t.Context()))(t); len(all) != 1 || all[0].ID != v.ID {
		t.Errorf("volumes %+v", all)
	}
}

// A volume that goes on here though another host took it over says so with
// AdoptVolume, and is told of no other then.
func TestAdoptVolume(t *testing.T) {
	w := newWorld(t)
	here, there := startHost(t, w, "alpha"), startHost(t, w, "beta")
	createVolume(t, here, "v", mib)
	write(t, here, "v", 1, 0, mib)
	backUp(t, here, NewBackup{Volume: "v", Name: "a1"})
	syncs(t, there)
	restore(t, there, "a1", RestoreRequest{Adopt: true})
	incremental(t, there, "v", "b2")
	a3, _ := incremental(t, here, "v", "a3")
	c := must(here.AdoptVolume(t.Context(), "v", "t1"))(t)
	if c.Epoch != 3 || c.After != a3.ID || c.Host != "alpha" {
		t.Errorf("claim %+v", c)
	}
	a4, op := incremental(t, here, "v", "a4")
	if a4.ParentID != a3.ID || a4.Epoch != 3 || op.Note != "" {
		t.Errorf("a4: %+v, note %q", a4, op.Note)
	}
	syncs(t, there)
	if over := must(there.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 1 || over[0].Host != "alpha" || over[0].AfterName != "a3" {
		t.Errorf("the other host is told %+v", over)
	}
	if texts := forkTexts(t, there); len(texts) != 1 || !strings.Contains(texts[0], "after backup a1: host alpha made a3, a4; host beta made b2") {
		t.Errorf("forks %q", texts)
	}
}

// What a volume was adopted through one target for, it is in the others too, from
// its first backup there on.
func TestAdoptedVolumeInAnotherTarget(t *testing.T) {
	w := newWorld(t)
	here, there := startHost(t, w, "alpha"), startHost(t, w, "beta")
	addTarget(t, here, "t2")
	createVolume(t, here, "v", mib)
	write(t, here, "v", 1, 0, mib)
	for _, target := range []string{"t1", "t2"} {
		backUp(t, here, NewBackup{Volume: "v", Name: "a-" + target, Target: target})
	}
	addTarget(t, there, "t2")
	syncs(t, there)
	restore(t, there, "a-t1", RestoreRequest{Adopt: true})
	b := backUp(t, there, NewBackup{Volume: "v", Name: "b-t2", Target: "t2"})
	again := backUp(t, there, NewBackup{Volume: "v", Name: "b-t2-again", Target: "t2", Incremental: true})
	if b.Epoch != 2 || again.Epoch != 2 || again.ClaimID != b.ClaimID || again.ParentID != b.ID {
		t.Errorf("%+v and %+v", b, again)
	}
	backUp(t, here, NewBackup{Volume: "v", Name: "stale-t2", Target: "t2", Incremental: true})
	const fork = "forked after backup a-t2: host alpha made stale-t2; host beta made b-t2, b-t2-again"
	if err := there.SyncTarget(t.Context(), "t2"); err != nil {
		t.Fatal(err)
	}
	if texts := forkTexts(t, there); len(texts) != 1 || texts[0] != fork {
		t.Errorf("forks %q, want %q", texts, fork)
	}
}

// The daemon dies at every object that an adopting restore and the backup after it
// write or read: the next one goes on, the volume is what the backup is, and its
// next backup has what changed.
func TestAdoptAfterACrash(t *testing.T) {
	w := newWorld(t)
	here := startHost(t, w, "alpha")
	createVolume(t, here, "v", 2*mib)
	write(t, here, "v", 1, 0, mib)
	want := content(t, here, "v")
	b := backUp(t, here, NewBackup{Volume: "v", Name: "b"})
	dir := t.TempDir()
	c := w.config(dir)
	c.Host = "beta"
	there := must(Start(context.Background(), c))(t)
	addTarget(t, there, "t1")

	var mu sync.Mutex // a restore asks for several objects at once
	var states []string
	w.store(url("t1")).on(func(context.Context, string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if len(states) < 40 {
			states = append(states, copyState(t, dir))
		}
		return nil
	})
	restore(t, there, "b", RestoreRequest{Adopt: true})
	w.store(url("t1")).on(nil)
	states = append(states, copyState(t, dir))
	if err := there.Close(); err != nil {
		t.Fatal(err)
	}
	for i, state := range states {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			c := w.config(state)
			c.Host = "beta"
			a := must(Start(context.Background(), c))(t)
			defer a.Close()
			for _, op := range must(a.Operations(t.Context()))(t) {
				if op.Kind == kindRestore {
					succeed(t, a, op)
				}
			}
			if _, _, err := a.findVolume("v"); err != nil { // it was not recorded yet
				restore(t, a, "b", RestoreRequest{Adopt: true})
			}
			same(t, "the volume", content(t, a, "v"), want)
			nothingTemporary(t, a)
			next, _ := incremental(t, a, "v", "next")
			if next.ParentID != b.ID || next.Changed != 0 || next.Epoch < 2 {
				t.Errorf("the next backup: %+v", next)
			}
		})
	}
}

// C4: nothing is left of the host but its volume; the target tells what it goes
// on from, and that it was not another host that took it over.
func TestAdoptedVolumeWithoutCatalog(t *testing.T) {
	w := newWorld(t)
	here := startHost(t, w, "alpha")
	createVolume(t, here, "v", mib)
	write(t, here, "v", 1, 0, mib)
	backUp(t, here, NewBackup{Volume: "v", Name: "a1"})
	there := startHost(t, w, "beta")
	restore(t, there, "a1", RestoreRequest{Adopt: true})
	b2, _ := incremental(t, there, "v", "b2")
	_, v, err := there.findVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	err = there.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.id, func(v *catalog.Volume) { v.Claims = nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	if over := must(there.Volume(t.Context(), "v"))(t).TakenOver; len(over) != 0 {
		t.Errorf("it is told of itself: %+v", over)
	}
	b3, op := incremental(t, there, "v", "b3")
	if b3.ParentID != b2.ID || b3.Epoch != 2 || b3.ClaimID != b2.ClaimID || op.Note != "" {
		t.Errorf("b3: %+v, note %q", b3, op.Note)
	}
	if b3.ClaimID.IsZero() {
		t.Error("no claim")
	}
}
