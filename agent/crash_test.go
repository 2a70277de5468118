package agent

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// A7: the daemon dies while a backup runs, before each of the objects that it
// writes: at the next start the volume has its status and its data, the
// temporary snapshot is gone, and the backup is in error with a reason.
func TestDaemonDiesDuringABackup(t *testing.T) {
	for put := 1; ; put++ {
		w := newWorld(t)
		dir := t.TempDir()
		a := w.start(dir)
		addTarget(t, a, "t1")
		createVolume(t, a, "v", mib)
		write(t, a, "v", 1, 0, mib)
		first := backUp(t, a, NewBackup{Volume: "v", Name: "first"})
		write(t, a, "v", 2, 0, 4096)
		d := attach(t, a, "v")
		d.flush()
		want := readAll(t, d.Layer)
		reached := w.store(url("t1")).waitAt("put", put)
		b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "b", Force: true, Incremental: true})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-reached:
		case <-a.runningOperation(op.ID).ended:
			if put == 1 {
				t.Error("a backup writes nothing")
			}
			d.detach()
			return
		}
		died := copyState(t, dir)
		a.CancelOperation(t.Context(), op.ID) // It may be through.
		w.store(url("t1")).on(nil)
		d.detach()
		a.Close()
		for range 2 { // The second start has nothing more to do.
			a = w.start(died)
			diedInBackup(t, a, first, b.ID, op.ID)
			same(t, "volume", content(t, a, "v"), want)
			a.Close()
		}
		a = w.start(died)
		next := backUp(t, a, NewBackup{Volume: "v", Name: "next", Incremental: true})
		if next.ParentID != first.ID {
			t.Errorf("parent %s, want %s", next.ParentID, first.ID)
		}
		same(t, "the next incremental", imageContent(t, a, next.ID), want)
		a.Close()
	}
}

// diedInBackup checks what a daemon finds whose predecessor died while it made
// the backup b of the volume v, after the backup first.
func diedInBackup(t *testing.T, a *Agent, first BackupView, b, op layers.ID) {
	t.Helper()
	v := must(a.Volume(t.Context(), "v"))(t)
	if v.Status != catalog.Available || v.PreviousStatus != "" {
		t.Errorf("volume %s, previous %q", v.Status, v.PreviousStatus)
	}
	got := must(a.Backup(t.Context(), b.String()))(t)
	if got.Status != catalog.Error || !strings.Contains(got.FailReason, "daemon stopped") {
		t.Errorf("backup %s: %q", got.Status, got.FailReason)
	}
	if must(a.Backup(t.Context(), "first"))(t).HasDependents {
		t.Error("a backup that failed counts as a dependent")
	}
	last := must(a.Operation(t.Context(), op))(t)
	if last.State != catalog.Failed || !strings.Contains(last.Error, "daemon stopped") || last.Ended.IsZero() {
		t.Errorf("operation %+v", last)
	}
	nothingTemporary(t, a)
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots) != 0 || len(marks) != 1 || marks[0] != first.BoundaryID {
		t.Errorf("snapshots %v, marks %v, want the mark of the first backup alone", snapshots, marks)
	}
}

// The same for a restore: what it was filling is in error, the backup is
// available.
func TestDaemonDiesDuringARestore(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	createVolume(t, a, "old", mib)
	g := w.store(url("t1")).shut("get")
	fresh, op1, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, op2, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{Volume: "old", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	died := copyState(t, dir)
	close(g.opened)
	finish(t, a, op1)
	finish(t, a, op2)
	a.Close()

	a = w.start(died)
	if got := statusOf(t, a, fresh.ID.String()); got != catalog.Error {
		t.Errorf("the new volume is %s, want error", got)
	}
	if got := statusOf(t, a, "old"); got != catalog.ErrorRestoring {
		t.Errorf("the existing volume is %s, want error_restoring", got)
	}
	if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
		t.Errorf("the backup is %s, want available", got)
	}
	_, err = a.OpenExport(t.Context(), "old")
	wantError(t, err, Conflict, "error_restoring")
	if err := a.DeleteVolume(t.Context(), fresh.ID.String()); err != nil {
		t.Error(err)
	}
	v := restore(t, a, "b", RestoreRequest{Volume: "old", Force: true})
	same(t, "restored again", content(t, a, v.ID.String()), pattern(1, mib))
}

// Whatever the catalog says was under way is brought to its end.
func TestStartEndsWhatWasUnderWay(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	target := addTarget(t, a, "t1")
	id := func(name string) layers.ID { return createVolume(t, a, name, mib).ID }
	creating, deleting, available := id("creating"), id("deleting"), id("available")
	inUse, backing, backingInUse := id("in-use"), id("backing"), id("backing-in-use")
	restoring, fresh := id("restoring"), id("fresh")
	snapshot := func(name string, status catalog.Status, system, boundary bool) layers.ID {
		s := catalog.Snapshot{ID: layers.NewID(), VolumeID: available, Name: name, Status: status, System: system, Created: time.Now()}
		if boundary {
			if err := a.volumes[available].data.Snapshot(s.ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, s) }); err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	snapshot("made", catalog.Creating, false, true)
	snapshot("not made", catalog.Creating, false, false)
	snapshot("half deleted", catalog.Deleting, false, true)
	snapshot("deleted", catalog.Deleting, false, false)
	snapshot("of a backup", catalog.Available, true, true)
	snapshot("lost", catalog.Available, false, false)
	whole := snapshot("of a whole backup", catalog.Available, true, true)
	backup := func(name string, status catalog.Status, temporary layers.ID) catalog.Backup {
		return catalog.Backup{ID: layers.NewID(), TargetID: target.ID, VolumeID: available, Name: name, Status: status,
			TempSnapshotID: temporary, BoundaryID: temporary}
	}
	backups := []catalog.Backup{
		backup("b creating", catalog.Creating, layers.NewID()), backup("b deleting", catalog.Deleting, layers.ID{}),
		backup("b restoring", catalog.Restoring, layers.ID{}), backup("b whole", catalog.Available, whole),
	}
	op := catalog.Operation{ID: layers.NewID(), State: catalog.Running}
	err := a.update(func(tx *catalog.Tx) error {
		set := func(id layers.ID, status, previous catalog.Status) error {
			return change(tx, catalog.Volumes, id, func(v *catalog.Volume) { v.Status, v.PreviousStatus = status, previous })
		}
		errs := []error{
			set(creating, catalog.Creating, ""), set(deleting, catalog.Deleting, ""), set(inUse, catalog.InUse, ""),
			set(backing, catalog.BackingUp, catalog.Available), set(backingInUse, catalog.BackingUp, catalog.InUse),
			set(restoring, catalog.RestoringBackup, catalog.Available), set(fresh, catalog.RestoringBackup, ""),
			catalog.Operations.Put(tx, op),
		}
		for _, b := range backups {
			errs = append(errs, catalog.Backups.Put(tx, b))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Close()

	a = w.start(dir)
	got := map[string]catalog.Status{}
	for _, v := range must(a.Volumes(t.Context()))(t) {
		got[v.Name] = v.Status
		if v.PreviousStatus != "" {
			t.Errorf("%s keeps the previous status %s", v.Name, v.PreviousStatus)
		}
	}
	for _, s := range must(a.Snapshots(t.Context(), "", true))(t) {
		got[s.Name] = s.Status
	}
	for _, b := range must(a.Backups(t.Context()))(t) {
		got[b.Name] = b.Status
	}
	want := map[string]catalog.Status{
		"available": catalog.Available, "in-use": catalog.Available, "backing": catalog.Available, "backing-in-use": catalog.Available,
		"restoring": catalog.ErrorRestoring, "fresh": catalog.Error, "made": catalog.Available, "lost": catalog.Error,
		"b creating": catalog.Error, "b deleting": catalog.ErrorDeleting, "b restoring": catalog.Available, "b whole": catalog.Available,
	}
	for name, status := range want {
		if got[name] != status {
			t.Errorf("%s is %q, want %q", name, got[name], status)
		}
		delete(got, name)
	}
	for name, status := range got {
		t.Errorf("%s is still there, %s", name, status)
	}
	for _, gone := range []layers.ID{creating, deleting} {
		if _, err := os.Stat(a.volumeDir(gone)); err == nil {
			t.Errorf("the folder of %s is still there", gone)
		}
	}
	nothingTemporary(t, a)
	if _, marks := boundaries(t, a, "available"); len(marks) != 1 || marks[0] != whole {
		t.Errorf("marks %v, want %s of the whole backup", marks, whole)
	}
	if last := must(a.Operation(t.Context(), op.ID))(t); last.State != catalog.Failed || last.Error == "" {
		t.Errorf("operation %+v", last)
	}
}

// Close stops what runs and records it; nothing is left for the next start.
func TestCloseStopsWhatRuns(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	reached := w.store(url("t1")).waitAt("put", 1)
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	_, err = a.CreateVolume(t.Context(), NewVolume{Name: "late", Size: mib})
	wantError(t, err, Stopped)
	a = w.start(dir)
	if got := must(a.Backup(t.Context(), b.ID.String()))(t); got.Status != catalog.Error || !strings.Contains(got.FailReason, "daemon was stopped") {
		t.Errorf("backup %s: %q", got.Status, got.FailReason)
	}
	if last := must(a.Operation(t.Context(), op.ID))(t); last.State != catalog.Failed || !strings.Contains(last.Error, "daemon was stopped") {
		t.Errorf("operation %+v", last)
	}
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("volume %s", got)
	}
	nothingTemporary(t, a)
	same(t, "volume", content(t, a, "v"), pattern(1, mib))
}
