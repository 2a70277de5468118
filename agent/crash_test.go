package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// A7, A8: the daemon dies while a backup runs, before each of the objects that
// it writes: the next one goes on with it. In the end the volume has its status
// and its data, the temporary snapshot is gone, and the backup holds what the
// volume held when it was begun.
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
		case <-ended(a, op):
			if put < 3 {
				t.Errorf("a backup makes %d writes", put-1)
			}
			d.detach()
			return
		}
		d.write(3, 8192, 4096) // not in the backup
		d.flush()
		now := readAll(t, d.Layer)
		died := copyState(t, dir)
		d.detach()
		a.Close() // Stopped, it leaves what it has stored.
		w.store(url("t1")).on(nil)
		a = w.start(died)
		if got := must(a.Backup(t.Context(), b.ID.String()))(t).Status; got != catalog.Creating && got != catalog.Available {
			t.Errorf("put %d: the backup goes on as %s", put, got)
		}
		last := finish(t, a, op)
		if last.State != catalog.Succeeded || last.ID != op.ID {
			t.Fatalf("put %d: operation %+v", put, last)
		}
		a.Close()
		for range 2 { // Nothing is left to be done.
			a = w.start(died)
			wentOn(t, a, first, b.ID)
			same(t, "volume", content(t, a, "v"), now)
			same(t, "backup", imageContent(t, a, b.ID), want)
			a.Close()
		}
		a = w.start(died)
		next := backUp(t, a, NewBackup{Volume: "v", Name: "next", Incremental: true})
		if next.ParentID != b.ID {
			t.Errorf("parent %s, want %s", next.ParentID, b.ID)
		}
		same(t, "the next incremental", imageContent(t, a, next.ID), now)
		a.Close()
	}
}

// wentOn checks what is there after a backup b of the volume v, an increment of
// first, that another daemon had begun.
func wentOn(t *testing.T, a *Agent, first BackupView, b layers.ID) {
	t.Helper()
	v := must(a.Volume(t.Context(), "v"))(t)
	if v.Status != catalog.Available || v.PreviousStatus != "" {
		t.Errorf("volume %s, previous %q", v.Status, v.PreviousStatus)
	}
	got := must(a.Backup(t.Context(), b.String()))(t)
	if got.Status != catalog.Available || got.FailReason != "" || got.ParentID != first.ID || got.ObjectCount > 3 {
		t.Errorf("backup %+v", got)
	}
	nothingTemporary(t, a)
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots) != 0 || len(marks) != 1 || marks[0] != got.BoundaryID {
		t.Errorf("snapshots %v, marks %v, want the mark of the backup alone", snapshots, marks)
	}
	nothingLeft(t, a)
}

// nothingLeft expects that no operation runs and no checkpoint is kept.
func nothingLeft(t *testing.T, a *Agent) {
	t.Helper()
	for _, op := range must(a.Operations(t.Context()))(t) {
		if op.State == catalog.Running || op.Waits != "" {
			t.Errorf("operation %+v", op)
		}
	}
	if left := must(list(a, catalog.Checkpoints))(t); len(left) > 0 {
		t.Errorf("checkpoints %v", left)
	}
}

// The same for a restore, into a new volume and over an existing larger one:
// they go on. B14, B15
func TestDaemonDiesDuringARestore(t *testing.T) {
	const size = 4 * mib
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", size)
	for at := int64(0); at < size; at += 2 * mib { // with holes
		write(t, a, "v", uint64(at), at, mib)
	}
	want := content(t, a, "v")
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	createVolume(t, a, "old", 2*size)
	write(t, a, "old", 9, 0, 2*size)
	for get := 1; ; get++ {
		died := copyState(t, dir)
		a := w.start(died)
		a.restoreEvery = 1
		s := w.store(url("t1"))
		fresh, op1, op2 := restoreBoth(t, a, s.waitAt("get", get))
		if fresh.IsZero() {
			if get < 5 {
				t.Errorf("two restores make %d reads", get-1)
			}
			a.Close()
			return
		}
		for fault := range 2 { // A second fault does not lose it.
			a.Close()
			s.on(nil)
			if fault == 0 {
				s.waitAt("get", 1)
			}
			a = w.start(died)
			if got := statusOf(t, a, "old"); got != catalog.RestoringBackup && got != catalog.Available {
				t.Errorf("get %d: the existing volume goes on as %s", get, got)
			}
			if got := statusOf(t, a, fresh.String()); got != catalog.RestoringBackup && got != catalog.Available {
				t.Errorf("get %d: the new volume goes on as %s", get, got)
			}
		}
		for _, op := range []catalog.Operation{op1, op2} {
			if last := finish(t, a, op); last.State != catalog.Succeeded {
				t.Errorf("get %d: %s: %s", get, last.State, last.Error)
			}
		}
		v := must(a.Volume(t.Context(), fresh.String()))(t)
		if v.Name != "v" || v.Status != catalog.Available || v.PreviousStatus != "" {
			t.Errorf("the new volume is %+v", v.Volume)
		}
		if v := must(a.Volume(t.Context(), "old"))(t); v.Status != catalog.Available || v.PreviousStatus != "" || v.Reason != "" {
			t.Errorf("the existing volume is %+v", v.Volume)
		}
		if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
			t.Errorf("the backup is %s, want available", got)
		}
		same(t, "new volume", content(t, a, fresh.String()), want)
		same(t, "existing volume", content(t, a, "old"), append(slices.Clone(want), make([]byte, size)...))
		nothingLeft(t, a)
		a.Close()
	}
}

// restoreBoth restores b into a new volume and over "old". If both end before
// reached is closed, it returns no volume.
func restoreBoth(t *testing.T, a *Agent, reached <-chan struct{}) (fresh layers.ID, op1, op2 catalog.Operation) {
	t.Helper()
	v, op1, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, op2, err = a.RestoreBackup(t.Context(), "b", RestoreRequest{Volume: "old", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, op := range []catalog.Operation{op1, op2} {
			for range a.WatchOperation(context.WithoutCancel(t.Context()), op.ID) {
			}
		}
	}()
	select {
	case <-reached:
		return v.ID, op1, op2
	case <-ended:
		return layers.ID{}, op1, op2
	}
}

// B17: a deletion that was cut off goes on.
func TestDaemonDiesDuringADeletion(t *testing.T) {
	for put := 1; put < 3; put++ {
		w := newWorld(t)
		dir := t.TempDir()
		a := w.start(dir)
		addTarget(t, a, "t1")
		createVolume(t, a, "v", mib)
		write(t, a, "v", 1, 0, mib)
		b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
		reached := w.store(url("t1")).waitAt("put", put)
		op := must(a.DeleteBackup(t.Context(), "b", false))(t)
		if put == 1 {
			<-reached
		} else {
			succeed(t, a, op)
		}
		died := copyState(t, dir)
		a.Close()
		w.store(url("t1")).on(nil)
		a = w.start(died)
		if last := finish(t, a, op); last.State != catalog.Succeeded {
			t.Errorf("put %d: %s: %s", put, last.State, last.Error)
		}
		if _, err := a.Backup(t.Context(), b.ID.String()); ReasonOf(err) != NotFound {
			t.Errorf("put %d: the deleted backup: %v", put, err)
		}
		if err := a.SyncTarget(t.Context(), "t1"); err != nil {
			t.Error(err)
		}
		if all := must(a.Backups(t.Context()))(t); len(all) > 0 {
			t.Errorf("put %d: %v", put, all)
		}
		nothingLeft(t, a)
		a.Close()
	}
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

// Close stops what runs, and the next daemon goes on with it.
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
	w.store(url("t1")).on(nil)
	a = w.start(dir)
	succeed(t, a, op)
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("volume %s", got)
	}
	nothingTemporary(t, a)
	nothingLeft(t, a)
	same(t, "volume", content(t, a, "v"), pattern(1, mib))
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))
}
