package agent

import (
	"errors"
	"os"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// V7: a clone is there at once, shares what it is made of, and is independent.
func TestClone(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 4*mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	old := content(t, a, "v")
	d := attach(t, a, "v") // In use: a clone needs no leave.
	d.write(2, 0, mib)
	now := readAll(t, d.Layer)

	of := func(n NewVolume) catalog.Volume { t.Helper(); return must(a.CreateVolume(t.Context(), n))(t) }
	c1 := of(NewVolume{Name: "c1", Snapshot: "v@s", Description: "d", Properties: map[string]string{"k": "v"}})
	c2 := of(NewVolume{Name: "c2", Source: "v", Size: 8 * mib})
	if c1.SnapshotID != s.ID || !c1.SourceVolumeID.IsZero() || c1.Size != 4*mib || c1.Description != "d" || c1.Properties["k"] != "v" || c1.Status != catalog.Available {
		t.Errorf("c1 %+v", c1)
	}
	if c2.SourceVolumeID != v.ID || !c2.SnapshotID.IsZero() || c2.Size != 8*mib {
		t.Errorf("c2 %+v", c2)
	}
	same(t, "c1", content(t, a, "c1"), old)
	same(t, "c2", content(t, a, "c2")[:4*mib], now)
	same(t, "what c2 is larger", content(t, a, "c2")[4*mib:], make([]byte, 4*mib))
	nothingTemporary(t, a)
	d.write(3, 2*mib, 4096)
	now = readAll(t, d.Layer)
	d.detach()
	write(t, a, "c1", 4, 0, 4096)
	mine := content(t, a, "c1")
	same(t, "v", content(t, a, "v"), now)
	same(t, "s", content(t, a, "v@s"), old)

	// V6: what clones need is not deleted, and they are named. The snapshot may go.
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "clones", "c1, c2")
	if got := must(a.Volume(t.Context(), "v"))(t); got.Status != catalog.Available || len(got.Clones) != 2 {
		t.Errorf("after a refusal %s, clones %v", got.Status, got.Clones)
	}
	if err := a.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Error(err)
	}
	c3 := of(NewVolume{Name: "c3", Source: "c1"})
	if err := a.DeleteVolume(t.Context(), "c2"); err != nil {
		t.Error(err)
	}
	wantError(t, a.DeleteVolume(t.Context(), "c1"), InUse, "c3")
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "c1, c3")
	a.Close()
	a = w.start(dir)
	for name, want := range map[string][]byte{"v": now, "c1": mine, "c3": mine} {
		same(t, name, content(t, a, name), want)
	}
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "c1, c3")
	for _, name := range []string{"c3", "c1", "v"} {
		if err := a.DeleteVolume(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if _, err := os.Stat(a.volumeDir(c3.ID)); err == nil {
		t.Error("the folder of c3 is still there")
	}
}

func TestClonesThatCannotBeMadeLeaveNothing(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	v := createVolume(t, a, "v", mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	for _, tt := range []struct {
		n      NewVolume
		reason Reason
		want   string
	}{
		{NewVolume{Name: "a/b", Snapshot: "s"}, Invalid, "contains"},
		{NewVolume{Name: "c", Snapshot: "s", Source: "v"}, Invalid, "leave one"},
		{NewVolume{Name: "c", Snapshot: "s", Size: 4096}, Invalid, "at least its 1048576 bytes"},
		{NewVolume{Name: "c", Source: "v", Size: 4096}, Invalid, "at least its 1048576 bytes"},
		{NewVolume{Name: "c", Source: "v", Size: 1000}, Invalid, "multiple of 512"},
		{NewVolume{Name: "c", Source: "v", Size: 1 << 62}, TooLarge, "16 TiB"},
		{NewVolume{Name: "c", Snapshot: "none"}, NotFound, "none"},
		{NewVolume{Name: "c", Source: "none"}, NotFound, "none"},
	} {
		_, err := a.CreateVolume(t.Context(), tt.n)
		wantError(t, err, tt.reason, tt.want)
	}
	if volumes := must(a.Volumes(t.Context()))(t); len(volumes) != 1 {
		t.Errorf("%d volumes, want 1", len(volumes))
	}
	nothingTemporary(t, a)
	if err := a.DeleteVolume(t.Context(), v.ID.String()); err != nil {
		t.Errorf("delete the origin of clones that were not made: %v", err)
	}
}

// A clone that was cut off at either end is removed, and so is what it was
// made of; the origin is as it was.
func TestDaemonDiesDuringAClone(t *testing.T) {
	for _, linked := range []bool{false, true} {
		w := newWorld(t)
		dir := t.TempDir()
		a := w.start(dir)
		v := createVolume(t, a, "v", mib)
		write(t, a, "v", 1, 0, mib)
		s := catalog.Snapshot{ID: layers.NewID(), VolumeID: v.ID, Name: "clone_x", System: true, Status: catalog.Available}
		clone := catalog.Volume{ID: layers.NewID(), Name: "c", Size: mib, Status: catalog.Creating, Origins: []layers.ID{v.ID}}
		data := a.volumes[v.ID].data
		err := errors.Join(data.Snapshot(s.ID), a.update(func(tx *catalog.Tx) error {
			return errors.Join(catalog.Snapshots.Put(tx, s), catalog.Volumes.Put(tx, clone))
		}))
		if linked && err == nil {
			var c *layers.Volume
			if c, err = data.Clone(a.volumeDir(clone.ID), clone.ID, s.ID, a.volumeOptions()); err == nil {
				err = c.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		for range 2 {
			a = w.start(dir)
			if volumes := must(a.Volumes(t.Context()))(t); len(volumes) != 1 || len(volumes[0].Clones) != 0 {
				t.Errorf("linked %v: volumes %+v", linked, volumes)
			}
			if _, err := os.Stat(a.volumeDir(clone.ID)); err == nil {
				t.Errorf("linked %v: the clone's folder is still there", linked)
			}
			nothingTemporary(t, a)
			same(t, "v", content(t, a, "v"), pattern(1, mib))
			a.Close()
		}
		a = w.start(dir)
		if err := a.DeleteVolume(t.Context(), "v"); err != nil {
			t.Error(err)
		}
		a.Close()
	}
}

// S3, V6: what a clone held alone comes back to its origin when the clone goes.
func TestSpaceOfADeletedClone(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 4*mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	write(t, a, "v", 2, 0, 4*mib)
	must(a.CreateVolume(t.Context(), NewVolume{Name: "c", Snapshot: "v@s"}))(t)
	if err := a.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if got := must(a.Volume(t.Context(), "v"))(t).Allocated; got != 8*mib {
		t.Errorf("with a clone of the old content v has %d bytes, want 8 MiB", got)
	}
	if err := a.DeleteVolume(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	look, late := time.NewTicker(time.Millisecond), time.After(patience)
	defer look.Stop()
	for must(a.Volume(t.Context(), "v"))(t).Allocated != 4*mib {
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("v still has %d bytes, want 4 MiB", must(a.Volume(t.Context(), "v"))(t).Allocated)
		}
	}
}
