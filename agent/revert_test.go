package agent

import (
	"strings"
	"testing"

	"varve/catalog"
	"varve/layers"
)

// S5: reverting needs a volume that nobody uses, keeps the state before, and
// every branch reads as before; incremental backups go on across it.
func TestRevert(t *testing.T) {
	_, a := startWithTarget(t)
	v := createVolume(t, a, "v", mib)
	want := map[string][]byte{}
	for i, name := range []string{"s1", "s2", "s3"} {
		write(t, a, "v", uint64(i), int64(i)*mib/4, mib/2)
		must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: name}))(t)
		want["v@"+name] = content(t, a, "v@"+name)
	}
	backUp(t, a, NewBackup{Volume: "v", Name: "full"})
	d := attach(t, a, "v")
	d.write(9, 0, 8192)
	_, _, err := a.RevertVolume(t.Context(), "v", "s1")
	wantError(t, err, InUse, "in use", "volume attach v --maintenance")
	now := readAll(t, d.Layer)
	d.detach()
	must(a.BeginMaintenance(t.Context(), "v"))(t)
	view, safety, err := a.RevertVolume(t.Context(), "v", "s1")
	if err != nil {
		t.Fatal(err)
	}
	if view.Status != catalog.Maintenance || safety.System || !strings.HasPrefix(safety.Name, "before-revert-") || safety.Status != catalog.Available {
		t.Errorf("reverted: %s, safety %+v", view.Status, safety)
	}
	must(a.EndMaintenance(t.Context(), "v"))(t)
	want["v@"+safety.Name] = now
	same(t, "reverted", content(t, a, "v"), want["v@s1"])
	for name, bytes := range want {
		same(t, name, content(t, a, name), bytes)
	}
	parents := map[string]string{}
	names := map[layers.ID]string{}
	for _, s := range must(a.Snapshots(t.Context(), "v", false))(t) {
		names[s.ID] = s.Name
		parents[s.Name] = names[s.ParentID]
		if s.Live != (s.Name == "s1") {
			t.Errorf("%s: live %v", s.Name, s.Live)
		}
	}
	if parents["s1"] != "" || parents["s2"] != "s1" || parents["s3"] != "s2" || parents[safety.Name] != "s3" {
		t.Errorf("parents %v", parents)
	}

	write(t, a, "v", 5, 0, 4096)
	now = content(t, a, "v")
	inc := backUp(t, a, NewBackup{Volume: "v", Name: "inc", Incremental: true})
	same(t, "incremental across a revert", imageContent(t, a, inc.ID), now)

	// Back, and away with the branch that is not wanted.
	if _, _, err := a.RevertVolume(t.Context(), v.ID.String(), safety.ID.String()); err != nil {
		t.Fatal(err)
	}
	same(t, "back", content(t, a, "v"), want["v@"+safety.Name])
	for _, s := range must(a.Snapshots(t.Context(), "v", false))(t) {
		if err := a.DeleteSnapshot(t.Context(), s.ID.String()); err != nil {
			t.Error(err)
		}
	}
	same(t, "without snapshots", content(t, a, "v"), want["v@"+safety.Name])

	_, _, err = a.RevertVolume(t.Context(), "v", "s1")
	wantError(t, err, NotFound, "s1")
	createVolume(t, a, "w", mib)
	must(a.CreateSnapshot(t.Context(), "w", NewSnapshot{Name: "other"}))(t)
	_, _, err = a.RevertVolume(t.Context(), "v", "w@other")
	wantError(t, err, NotFound, "other")
	_, _, err = a.RevertVolume(t.Context(), "nobody", "other")
	wantError(t, err, NotFound, "nobody")
}

// A revert that a crash cut off: the record of the safety snapshot goes, or
// becomes available, as the chain says.
func TestDaemonDiesDuringARevert(t *testing.T) {
	for _, done := range []bool{false, true} {
		w := newWorld(t)
		dir := t.TempDir()
		a := w.start(dir)
		v := createVolume(t, a, "v", mib)
		write(t, a, "v", 1, 0, mib)
		s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
		old := content(t, a, "v")
		write(t, a, "v", 2, 0, 4096)
		want, count := content(t, a, "v"), 1
		safety := catalog.Snapshot{ID: layers.NewID(), VolumeID: v.ID, Name: "before", Status: catalog.Creating}
		if err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, safety) }); err != nil {
			t.Fatal(err)
		}
		if done {
			if err := a.volumes[v.ID].data.Revert(s.ID, safety.ID); err != nil {
				t.Fatal(err)
			}
			want, count = old, 2
		}
		a.Close()
		a = w.start(dir)
		same(t, "v", content(t, a, "v"), want)
		snapshots := must(a.Snapshots(t.Context(), "v", true))(t)
		if len(snapshots) != count || snapshots[count-1].Status != catalog.Available {
			t.Errorf("done %v: snapshots %+v", done, snapshots)
		}
		a.Close()
	}
}
