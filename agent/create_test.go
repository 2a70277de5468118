package agent

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

// B5, B6, B7, B8: what a full and an incremental backup are and show.
func TestFullAndIncremental(t *testing.T) {
	_, a := startWithTarget(t)
	v := createVolume(t, a, "v", 16*mib)
	write(t, a, "v", 1, 0, 8*mib)
	first := content(t, a, "v")

	full := backUp(t, a, NewBackup{Volume: "v", Name: "full", Description: "d", Incremental: true})
	if full.Incremental() || full.Status != catalog.Available || full.Name != "full" || full.Description != "d" ||
		full.VolumeID != v.ID || full.VolumeName != "v" || full.Size != 16*mib || !full.SnapshotID.IsZero() ||
		full.HasDependents || !full.DataTimestamp.Equal(full.Created) || !full.Updated.After(full.Created) {
		t.Errorf("full: %+v", full)
	}
	if full.Logical < 8*mib || full.ObjectCount < 1 || full.Stored < 8*mib || full.Duration <= 0 {
		t.Errorf("full: %d bytes of data, %d stored in %d objects, in %v", full.Logical, full.Stored, full.ObjectCount, full.Duration)
	}
	write(t, a, "v", 2, 4*mib, 64<<10)
	second := content(t, a, "v")
	inc := backUp(t, a, NewBackup{Volume: "v", Name: "inc", Incremental: true})
	if inc.ParentID != full.ID || inc.Size != 16*mib || inc.Changed != 64<<10 || inc.Stored > mib {
		t.Errorf("incremental: %+v", inc)
	}
	same(t, "full", imageContent(t, a, full.ID), first)
	same(t, "incremental", imageContent(t, a, inc.ID), second)

	parent := must(a.Backup(t.Context(), "full"))(t)
	if !parent.HasDependents || !parent.Updated.After(full.Updated) || !parent.Created.Equal(full.Created) || !parent.DataTimestamp.Equal(full.DataTimestamp) {
		t.Errorf("parent after: %+v, before: %+v", parent, full)
	}
	backups := must(a.Backups(t.Context()))(t)
	if len(backups) != 2 || backups[0].ID != inc.ID || backups[1].ID != full.ID {
		t.Errorf("backups are not listed newest first: %+v", backups)
	}
	nothingTemporary(t, a)
}

// B7: what cannot be incremental is full, and says why.
func TestIncrementalWithoutAParentSaysSo(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	_, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := succeed(t, a, op); !strings.Contains(last.Note, "no earlier backup") || !strings.Contains(last.Note, "full") {
		t.Errorf("note %q", last.Note)
	}
	_, v, err := a.findVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range v.data.Boundaries() {
		if err := v.data.DropMark(b.ID); err != nil {
			t.Fatal(err)
		}
	}
	write(t, a, "v", 1, 0, mib)
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := succeed(t, a, op); !strings.Contains(last.Note, "no longer knows what changed") {
		t.Errorf("note %q", last.Note)
	}
	if b := must(a.Backup(t.Context(), b.ID.String()))(t); b.Incremental() {
		t.Error("a full backup shows a parent")
	}
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))
}

// B7 beside C5: another host deleted the parent, and this one does not know yet.
func TestParentThatAnotherHostDeleted(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	parent := backUp(t, a, NewBackup{Volume: "v", Name: "parent"})
	other := w.start(t.TempDir())
	addTarget(t, other, "t1")
	succeed(t, other, must(other.DeleteBackup(t.Context(), "parent", false))(t))
	write(t, a, "v", 2, 0, 4096)
	want := content(t, a, "v")
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := succeed(t, a, op); !strings.Contains(last.Note, "gone from the target") {
		t.Errorf("note %q", last.Note)
	}
	if b := must(a.Backup(t.Context(), b.ID.String()))(t); b.Incremental() || b.Logical != mib {
		t.Errorf("parent %s, %d bytes of data, want none and all", b.ParentID, b.Logical)
	}
	same(t, "backup", imageContent(t, a, b.ID), want)
	if must(a.Backup(t.Context(), parent.ID.String()))(t).HasDependents {
		t.Error("the parent that is gone has a dependent")
	}
}

// A2: no temporary snapshot where the newest snapshot is what the volume is.
func TestCleanVolumeNeedsNoTemporarySnapshot(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	during := func() (boundary, temporary layers.ID) {
		g := w.store(url("t1")).shut("put")
		b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
		if err != nil {
			t.Fatal(err)
		}
		g.await(t)
		now := must(a.Backup(t.Context(), b.ID.String()))(t)
		if now.BoundaryID == s.ID {
			wantError(t, a.DeleteSnapshot(t.Context(), "s"), InUse, "backup")
		}
		close(g.opened)
		succeed(t, a, op)
		b = must(a.Backup(t.Context(), b.ID.String()))(t)
		if !b.SnapshotID.IsZero() || !b.DataTimestamp.Equal(b.Created) {
			t.Errorf("snapshot %s, data of %s, made %s: the user named none", b.SnapshotID, b.DataTimestamp, b.Created)
		}
		return now.BoundaryID, now.TempSnapshotID
	}
	if boundary, temporary := during(); boundary != s.ID || !temporary.IsZero() {
		t.Errorf("clean: boundary %s, temporary snapshot %s, want %s and none", boundary, temporary, s.ID)
	}
	write(t, a, "v", 2, 0, 4096)
	if boundary, temporary := during(); boundary == s.ID || temporary != boundary {
		t.Errorf("written to: boundary %s, temporary snapshot %s, want a new one", boundary, temporary)
	}
	nothingTemporary(t, a)
}

// A3: refused without a trace.
func TestVolumeInUseNeedsForce(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	d := attach(t, a, "v")
	defer d.detach()
	before, quota := must(a.Volume(t.Context(), "v"))(t), must(a.Quota(t.Context()))(t)
	_, _, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	wantError(t, err, InUse, "in use", "--force", "--snapshot")
	after := must(a.Volume(t.Context(), "v"))(t)
	if after.Status != before.Status || !after.Updated.Equal(before.Updated) || after.PreviousStatus != "" {
		t.Errorf("volume after %+v, before %+v", after.Volume, before.Volume)
	}
	if now := must(a.Quota(t.Context()))(t); !reflect.DeepEqual(now, quota) {
		t.Errorf("quota after %+v, before %+v", now, quota)
	}
	if n := len(must(a.Backups(t.Context()))(t)); n != 0 {
		t.Errorf("%d backups", n)
	}
	if n := len(must(a.Operations(t.Context()))(t)); n != 0 {
		t.Errorf("%d operations", n)
	}
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots)+len(marks) != 0 {
		t.Errorf("snapshots %v, marks %v", snapshots, marks)
	}
}

// A4, B11: a snapshot of a volume in use needs no force; force on an available
// volume is harmless; an older snapshot can follow a newer backup.
func TestBackupOfASnapshot(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	write(t, a, "v", 2, 0, 8192)
	newest := backUp(t, a, NewBackup{Volume: "v", Name: "newest", Force: true})
	d := attach(t, a, "v")
	d.write(3, 0, mib)
	for _, ref := range []string{"s", "v@s", s.ID.String()} {
		b := backUp(t, a, NewBackup{Volume: "v", Snapshot: ref, Incremental: true})
		if b.SnapshotID != s.ID || !b.DataTimestamp.Equal(s.Created) || b.BoundaryID != s.ID {
			t.Errorf("%s: snapshot %s, data of %s, want %s of %s", ref, b.SnapshotID, b.DataTimestamp, s.ID, s.Created)
		}
		if b.ParentID == newest.ID {
			t.Errorf("%s: its parent holds later data", ref)
		}
		same(t, ref, imageContent(t, a, b.ID), pattern(1, mib))
	}
	d.detach()
	inc := backUp(t, a, NewBackup{Volume: "v", Incremental: true})
	if inc.ParentID != newest.ID {
		t.Errorf("parent %s, want the one with the newest data, %s", inc.ParentID, newest.ID)
	}
	same(t, "incremental", imageContent(t, a, inc.ID), pattern(3, mib))
	createVolume(t, a, "w", mib)
	_, _, err := a.CreateBackup(t.Context(), NewBackup{Volume: "w", Snapshot: s.ID.String()})
	wantError(t, err, NotFound, "snapshot")
}

// A1, A6, A8, A10: writes, attach, detach, growing and snapshots go on during
// a backup, and what it stores is the instant at which it began.
func TestVolumeIsUsedDuringItsBackup(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	d := attach(t, a, "v")
	d.write(1, 0, 4*mib)
	want := readAll(t, d.Layer)
	g := w.store(url("t1")).shut("put")
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if v := must(a.Volume(t.Context(), "v"))(t); v.Status != catalog.BackingUp || v.PreviousStatus != catalog.InUse {
		t.Errorf("status %s, previous %s, want backing-up and in-use", v.Status, v.PreviousStatus)
	}
	g.await(t)
	d.write(2, 0, 2*mib)
	d.flush()
	second := attach(t, a, "v")
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	d.write(3, mib, 2*mib)
	must(a.GrowVolume(t.Context(), "v", 8*mib))(t)
	_, _, err = a.CreateBackup(t.Context(), NewBackup{Volume: "v", Force: true})
	wantError(t, err, Conflict, "being backed up")
	live := readAll(t, d.Layer)
	if err := a.DeleteSnapshot(t.Context(), s.ID.String()); err != nil {
		t.Error(err)
	}
	d.detach()
	second.detach()
	if v := must(a.Volume(t.Context(), "v"))(t); v.Status != catalog.BackingUp || v.PreviousStatus != catalog.Available {
		t.Errorf("detached: status %s, previous %s, want backing-up and available", v.Status, v.PreviousStatus)
	}
	if now := must(a.Backup(t.Context(), b.ID.String()))(t); now.Status != catalog.Creating || now.TempSnapshotID.IsZero() {
		t.Errorf("the running backup: status %s, temporary snapshot %s", now.Status, now.TempSnapshotID)
	}
	close(g.opened)
	succeed(t, a, op)
	if v := must(a.Volume(t.Context(), "v"))(t); v.Status != catalog.Available || v.PreviousStatus != "" {
		t.Errorf("after: status %s, previous %q", v.Status, v.PreviousStatus)
	}
	same(t, "backup", imageContent(t, a, b.ID), want)
	same(t, "volume", content(t, a, "v"), live)
	nothingTemporary(t, a)
	if b := must(a.Backup(t.Context(), b.ID.String()))(t); b.Size != 4*mib {
		t.Errorf("backup of %d bytes, the volume had 4 MiB then", b.Size)
	}
}

// A8 under load: writers that never pause, backup after backup.
func TestBackupsUnderWriteLoad(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", 8*mib)
	d := attach(t, a, "v")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const writers = 4
	for i := range writers {
		wg.Go(func() {
			for n := uint64(0); ctx.Err() == nil; n++ {
				// Each writer keeps its part uniform, but for the write under way.
				d.write(n%64, int64(i)*2*mib+int64(n/64%32)*(64<<10), 64<<10)
				if n%16 == 0 {
					d.flush()
				}
			}
		})
	}
	var made []BackupView
	want := map[layers.ID][]byte{}
	for i := range 6 {
		name := fmt.Sprint("s", i)
		s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: name}))(t)
		b := backUp(t, a, NewBackup{Volume: "v", Snapshot: name, Incremental: true})
		want[b.ID] = content(t, a, s.ID.String())
		made = append(made, b, backUp(t, a, NewBackup{Volume: "v", Force: true, Incremental: true}))
	}
	cancel()
	wg.Wait()
	d.detach()
	last := backUp(t, a, NewBackup{Volume: "v", Incremental: true})
	want[last.ID] = content(t, a, "v")
	if last.ParentID != made[len(made)-1].ID {
		t.Errorf("parent %s, want the newest, %s", last.ParentID, made[len(made)-1].ID)
	}
	for id, bytes := range want {
		same(t, id.String(), imageContent(t, a, id), bytes)
	}
	nothingTemporary(t, a)
}

// A5, A6: whichever call of the store fails, the volume has its status back,
// the temporary snapshot is gone, and the next backup works.
func TestBackupFailsAtEachStep(t *testing.T) {
	for step := 1; ; step++ {
		w, a := startWithTarget(t)
		createVolume(t, a, "v", mib)
		d := attach(t, a, "v")
		d.write(1, 0, mib)
		s := w.store(url("t1"))
		var mu sync.Mutex
		calls := 0
		s.on(func(_ context.Context, op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls >= step {
				return errFault
			}
			return nil
		})
		b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Force: true})
		if err != nil {
			t.Fatal(err)
		}
		last := finish(t, a, op)
		s.on(nil)
		b = must(a.Backup(t.Context(), b.ID.String()))(t)
		if last.State == catalog.Succeeded {
			if step < 3 {
				t.Errorf("a backup succeeds although the store fails from call %d on", step)
			}
			d.detach()
			return
		}
		if b.Status != catalog.Error || !strings.Contains(b.FailReason, errFault.Error()) || !strings.Contains(b.FailReason, "t1") {
			t.Errorf("step %d: status %s, reason %q", step, b.Status, b.FailReason)
		}
		if v := must(a.Volume(t.Context(), "v"))(t); v.Status != catalog.InUse || v.PreviousStatus != "" {
			t.Errorf("step %d: volume %s, previous %q", step, v.Status, v.PreviousStatus)
		}
		nothingTemporary(t, a)
		if snapshots, marks := boundaries(t, a, "v"); len(snapshots)+len(marks) != 0 {
			t.Errorf("step %d: snapshots %v, marks %v are left", step, snapshots, marks)
		}
		d.detach()
		again := backUp(t, a, NewBackup{Volume: "v", Incremental: true})
		same(t, "the next backup", imageContent(t, a, again.ID), pattern(1, mib))
		succeed(t, a, must(a.DeleteBackup(t.Context(), b.ID.String(), false))(t)) // B17
		a.Close()
	}
}

// B19: a canceled backup leaves no record and no objects.
func TestCanceledBackupLeavesNothing(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := w.store(url("t1"))
	names := func() (names []string) {
		for info, err := range s.Store.List(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, info.Name)
		}
		return names
	}
	backUp(t, a, NewBackup{Volume: "v", Name: "whole"})
	before := names()
	write(t, a, "v", 2, 0, mib)
	reached := s.waitAt("put", 1)
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := a.CancelOperation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	last := must(a.Operation(t.Context(), op.ID))(t)
	if last.State != catalog.Canceled || last.Error == "" {
		t.Errorf("operation %+v, want canceled", last)
	}
	_, err = a.Backup(t.Context(), b.ID.String())
	wantError(t, err, NotFound)
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("volume %s", got)
	}
	nothingTemporary(t, a)
	if after := names(); len(after) != len(before) {
		t.Errorf("objects after %q, before %q", after, before)
	}
}

// Several volumes are backed up at once, one backup of each at a time.
func TestBackupsOfDifferentVolumesRunAtOnce(t *testing.T) {
	w, a := startWithTarget(t)
	s := w.store(url("t1"))
	want := map[layers.ID][]byte{}
	var operations []catalog.Operation
	g := s.shut("put")
	for i := range 5 {
		name := fmt.Sprint("v", i)
		createVolume(t, a, name, mib)
		write(t, a, name, uint64(i), 0, mib)
		b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: name})
		if err != nil {
			t.Fatal(err)
		}
		want[b.ID] = pattern(uint64(i), mib)
		operations = append(operations, op)
		_, _, err = a.CreateBackup(t.Context(), NewBackup{Volume: name})
		wantError(t, err, Conflict, "already")
	}
	g.await(t)
	if n := len(must(a.Status(t.Context()))(t).Running); n != 5 {
		t.Errorf("%d operations run, want 5", n)
	}
	close(g.opened)
	for _, op := range operations {
		succeed(t, a, op)
	}
	for id, bytes := range want {
		same(t, id.String(), imageContent(t, a, id), bytes)
	}
}

// A backup goes where it is told, and nowhere without being told if that is not
// clear.
func TestTargetOfABackup(t *testing.T) {
	w := newWorld(t)
	a := w.start(t.TempDir())
	createVolume(t, a, "v", mib)
	_, _, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	wantError(t, err, Conflict, "no backup target", "add")
	addTarget(t, a, "t1")
	addTarget(t, a, "t2")
	_, _, err = a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	wantError(t, err, Invalid, "2 backup targets", "t1, t2")
	one := backUp(t, a, NewBackup{Volume: "v", Target: "t1"})
	two := backUp(t, a, NewBackup{Volume: "v", Target: "t2", Incremental: true})
	if one.TargetName != "t1" || two.TargetName != "t2" || two.Incremental() {
		t.Errorf("targets %s and %s, the second incremental %v", one.TargetName, two.TargetName, two.Incremental())
	}
	if _, marks := boundaries(t, a, "v"); len(marks) != 2 {
		t.Errorf("%d marks, want one for each target", len(marks))
	}
	for _, target := range []string{"t1", "t2"} {
		if b := backUp(t, a, NewBackup{Volume: "v", Target: target, Incremental: true}); !b.Incremental() || b.Changed != 0 {
			t.Errorf("%s: incremental %v, %d bytes changed", target, b.Incremental(), b.Changed)
		}
	}
	for _, n := range []NewBackup{{Volume: "x"}, {Volume: "v", Target: "x"}, {Volume: "v", Target: "t1", Snapshot: "x"}} {
		_, _, err = a.CreateBackup(t.Context(), n)
		wantError(t, err, NotFound, `"x"`)
	}
	_, _, err = a.CreateBackup(t.Context(), NewBackup{Volume: "v", Target: "t1", Name: "a/b"})
	wantError(t, err, Invalid, "backup", "name")
}

// B7: an increment whose parent cannot be read, though nobody had found that
// yet, is made as a full backup, and says why.
func TestIncrementalOnADamagedParentIsFull(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 4*mib)
	first := backUp(t, a, NewBackup{Volume: "v"})
	s := w.store(url("t1"))
	var root string
	for info, err := range s.List(t.Context(), "v/") {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(info.Name, "/b/") {
			root = info.Name
		}
	}
	b, err := object.ReadAll(t.Context(), s, root, mib)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), root, b[:len(b)-1]); err != nil { // cut: what the daemon knows of it is not what is there
		t.Fatal(err)
	}
	write(t, a, "v", 2, mib, mib)
	second, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	last := succeed(t, a, op)
	if !strings.Contains(last.Note, first.ID.String()) || !strings.Contains(last.Note, "full backup was made") || !strings.Contains(last.Note, "target verify t1") {
		t.Errorf("note %q", last.Note)
	}
	if made := must(a.Backup(t.Context(), second.ID.String()))(t); made.Incremental() {
		t.Error("it has a parent")
	}
	same(t, "full", imageContent(t, a, second.ID), content(t, a, "v"))
}
