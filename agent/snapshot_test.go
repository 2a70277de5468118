package agent

import (
	"slices"
	"testing"

	"varve/catalog"
	"varve/layers"
)

// S1, S3: each snapshot is its instant, and stays so whichever others go.
func TestSnapshotsAreTheirInstants(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", mib)
	names := []string{"s1", "s2", "s3", "s4"}
	want := map[string][]byte{}
	d := attach(t, a, "v")
	for i, name := range names {
		d.write(uint64(i), int64(i)*mib/8, mib/4)
		must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: name}))(t)
		want[name] = content(t, a, "v@"+name)
	}
	d.write(9, 0, mib/2)
	live := readAll(t, d.Layer)
	d.detach()
	for _, gone := range []string{"s2", "s4", "s1", "s3"} {
		if err := a.DeleteSnapshot(t.Context(), "v@"+gone); err != nil {
			t.Fatal(err)
		}
		delete(want, gone)
		for name, bytes := range want {
			same(t, name+" without "+gone, content(t, a, "v@"+name), bytes)
		}
		same(t, "v without "+gone, content(t, a, "v"), live)
	}
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots)+len(marks) != 0 {
		t.Errorf("%d snapshots and %d marks are left in the chain", len(snapshots), len(marks))
	}
}

func TestSnapshotsByAllTheirNames(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	one, two := createVolume(t, a, "one", mib), createVolume(t, a, "two", mib)
	s1 := must(a.CreateSnapshot(t.Context(), "one", NewSnapshot{Name: "s", Description: "d"}))(t)
	s2 := must(a.CreateSnapshot(t.Context(), "two", NewSnapshot{Name: "s"}))(t)
	for ref, want := range map[string]layers.ID{
		"one@s": s1.ID, "two@s": s2.ID, s2.ID.String(): s2.ID,
		one.ID.String() + "@s": s1.ID, two.ID.String() + "@" + s2.ID.String(): s2.ID,
	} {
		if s, err := a.Snapshot(t.Context(), ref); err != nil || s.ID != want {
			t.Errorf("%s: %s, %v, want %s", ref, s.ID, err, want)
		}
	}
	_, err := a.Snapshot(t.Context(), "s")
	wantError(t, err, Ambiguous, s1.ID.String(), s2.ID.String(), "one", "two")
	for _, ref := range []string{"one@x", "x@s", "one@" + s2.ID.String()} {
		_, err = a.Snapshot(t.Context(), ref)
		wantError(t, err, NotFound)
	}
	if s := must(a.Snapshots(t.Context(), "one", false))(t); len(s) != 1 || s[0].VolumeName != "one" || s[0].Description != "d" {
		t.Errorf("snapshots of one: %+v", s)
	}
	unnamed := must(a.CreateSnapshot(t.Context(), "one", NewSnapshot{}))(t)
	if unnamed.Name != timeName(unnamed.Created) {
		t.Errorf("a snapshot without a name is named %q, made %s", unnamed.Name, unnamed.Created)
	}
}

// A snapshot that is read is not deleted.
func TestSnapshotThatIsReadStays(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	e := must(a.OpenExport(t.Context(), "v@s"))(t)
	i := must(a.OpenImage(t.Context(), s.ID))(t)
	wantError(t, a.DeleteSnapshot(t.Context(), "s"), InUse, "being read")
	e.Close()
	e.Close()
	wantError(t, a.DeleteSnapshot(t.Context(), "s"), InUse, "being read")
	same(t, "s", readAll(t, i), pattern(1, mib))
	i.Close()
	if err := a.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Error(err)
	}
}

// S7 and the boundary of the newest backup: deleting that snapshot leaves a
// mark, so the next incremental is small; the marks before it go.
func TestDeletedSnapshotOfTheNewestBackupLeavesAMark(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", 8*mib)
	write(t, a, "v", 1, 0, 8*mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	full := backUp(t, a, NewBackup{Volume: "v", Name: "full", Snapshot: "s"})
	other := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "other"}))(t)
	for _, ref := range []string{s.ID.String(), other.ID.String()} {
		if err := a.DeleteSnapshot(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots) != 0 || !slices.Equal(marks, []layers.ID{s.ID}) {
		t.Errorf("snapshots %v, marks %v, want the mark %s alone", snapshots, marks, s.ID)
	}
	write(t, a, "v", 2, mib, 64<<10)
	want := content(t, a, "v")
	inc := backUp(t, a, NewBackup{Volume: "v", Incremental: true})
	if inc.ParentID != full.ID || inc.Changed > mib {
		t.Errorf("parent %s, %d bytes changed, want %s and 64 KiB", inc.ParentID, inc.Changed, full.ID)
	}
	same(t, "incremental", imageContent(t, a, inc.ID), want)
	if _, marks := boundaries(t, a, "v"); !slices.Equal(marks, []layers.ID{inc.BoundaryID}) {
		t.Errorf("marks %v, want the newest backup's %s alone", marks, inc.BoundaryID)
	}
	op := must(a.DeleteBackup(t.Context(), inc.ID.String(), false))(t)
	succeed(t, a, op)
	op = must(a.DeleteBackup(t.Context(), "full", false))(t)
	succeed(t, a, op)
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots)+len(marks) != 0 {
		t.Errorf("without a backup: snapshots %v, marks %v", snapshots, marks)
	}
	same(t, "v", content(t, a, "v"), want)
}

// The status of a volume forbids what makes no sense in it.
func TestVolumeInErrorIsNotUsed(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	v := createVolume(t, a, "v", mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	err := a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.ID, func(v *catalog.Volume) { v.Status, v.Reason = catalog.ErrorRestoring, "half" })
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.OpenExport(t.Context(), "v")
	wantError(t, err, Conflict, "error_restoring", "half")
	_, err = a.CreateSnapshot(t.Context(), "v", NewSnapshot{})
	wantError(t, err, Conflict, "error_restoring")
	_, err = a.GrowVolume(t.Context(), "v", 2*mib)
	wantError(t, err, Conflict, "error_restoring")
	if e := must(a.Exports(t.Context()))(t); len(e) != 0 {
		t.Errorf("exports %v of a volume in error", e)
	}
	if err := a.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
}

// S7: what the system has left behind goes at the deletion of any snapshot.
func TestLeftoverOfTheSystemGoesWithAnySnapshot(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	v := createVolume(t, a, "v", mib)
	leftover := catalog.Snapshot{ID: layers.NewID(), VolumeID: v.ID, Name: "leftover", System: true, Status: catalog.Available}
	if err := a.volumes[v.ID].data.Snapshot(leftover.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, leftover) }); err != nil {
		t.Fatal(err)
	}
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	if shown := must(a.Snapshots(t.Context(), "v", false))(t); len(shown) != 1 || shown[0].Name != "s" {
		t.Errorf("the default list shows %+v", shown)
	}
	if shown := must(a.Snapshots(t.Context(), "v", true))(t); len(shown) != 2 {
		t.Errorf("the whole list shows %+v", shown)
	}
	if err := a.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	nothingTemporary(t, a)
	if snapshots, marks := boundaries(t, a, "v"); len(snapshots)+len(marks) != 0 {
		t.Errorf("snapshots %v, marks %v are left in the chain", snapshots, marks)
	}
}
