package agent

import (
	"testing"

	"varve/catalog"
)

// M1: a volume in maintenance has no clients, and everything else works.
func TestMaintenance(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	d := attach(t, a, "v")
	_, err := a.BeginMaintenance(t.Context(), "v")
	wantError(t, err, InUse, "in use")
	_, err = a.EndMaintenance(t.Context(), "v")
	wantError(t, err, Conflict, "not in maintenance")
	d.write(2, 0, 4096)
	d.detach()

	for range 2 { // The second changes nothing.
		v := must(a.BeginMaintenance(t.Context(), "v"))(t)
		if v.Status != catalog.Maintenance || !v.Maintenance {
			t.Errorf("status %s, maintenance %v", v.Status, v.Maintenance)
		}
	}
	_, err = a.OpenExport(t.Context(), "v")
	wantError(t, err, Conflict, "in maintenance", "volume detach v")
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "in maintenance")
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	want := content(t, a, "v@s")
	exports := must(a.Exports(t.Context()))(t)
	if len(exports) != 1 || exports[0].Name != "v@s" {
		t.Errorf("exports %v, want the snapshot alone", exports)
	}
	backUp(t, a, NewBackup{Volume: "v", Name: "b"}) // Without --force: nobody writes.
	if got := statusOf(t, a, "v"); got != catalog.Maintenance {
		t.Errorf("after a backup the status is %s", got)
	}
	must(a.GrowVolume(t.Context(), "v", 2*mib))(t)
	restore(t, a, "b", RestoreRequest{Volume: "v", Force: true})
	if got := statusOf(t, a, "v"); got != catalog.Maintenance {
		t.Errorf("after a restore the status is %s", got)
	}

	// It outlives the daemon, also one that dies while a backup runs.
	reached := w.store(url("t1")).waitAt("put", 1)
	_, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "cut off"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	died := copyState(t, a.config.State)
	a.CancelOperation(t.Context(), op.ID)
	w.store(url("t1")).on(nil)
	b := w.start(died)
	_, err = b.OpenExport(t.Context(), "v")
	wantError(t, err, Conflict, "in maintenance")
	until(t, "that it is in maintenance after its backup went on", func() bool { return statusOf(t, b, "v") == catalog.Maintenance })

	v := must(a.EndMaintenance(t.Context(), "v"))(t)
	if v.Status != catalog.Available || v.Maintenance {
		t.Errorf("after its end: status %s, maintenance %v", v.Status, v.Maintenance)
	}
	same(t, "v", content(t, a, "v")[:mib], want)
}
