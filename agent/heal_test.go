package agent

import (
	"strings"
	"testing"

	"varve/catalog"
)

// TestRepairTakesWhatTheVolumeHas: a pack that is gone is written anew from the
// live volume where that was not written since, and from a snapshot where it
// was; what nobody has any more is told, and never made up. // B15
func TestRepairTakesWhatTheVolumeHas(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 2*mib)
	write(t, a, "v", 5, 3*mib, 4096) // a pack with leaves of its own would be another case
	want := content(t, a, "v")
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	store := w.store(url("t1"))
	name, whole := store.largest(t, "p/")
	frames := flipped(flipped(whole, 100_000), 500_000)

	verify := func() catalog.Operation {
		t.Helper()
		return finish(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "deep", Repair: true}))(t))
	}
	// Two frames are damaged, one of which the live volume has still; before the
	// other was overwritten a snapshot was taken.
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	write(t, a, "v", 9, 400_000, 200_000)
	store.replace(t, name, frames)
	op := verify()
	if op.State != catalog.Succeeded || op.Damage != 0 || len(op.Findings) != 2 || !op.Findings[0].Repaired || !strings.Contains(op.Note, "2 frames of damaged packs were written anew") {
		t.Fatalf("repair: %+v", op)
	}
	same(t, "restored after the repair", content(t, a, restore(t, a, "b", RestoreRequest{}).ID.String()), want)
	if op := verify(); op.State != catalog.Succeeded || len(op.Findings) != 0 {
		t.Errorf("verified again: %+v", op)
	}

	// A second daemon, with nothing but the target, reads it too.
	other := w.start(t.TempDir())
	addTarget(t, other, "t1")
	same(t, "restored elsewhere", content(t, other, restore(t, other, "b", RestoreRequest{}).ID.String()), want)
}

// TestRepairMakesNothingUp: what was written since, and is in no snapshot, stays
// lost; the next incremental backup does not build on it.
func TestRepairMakesNothingUp(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 2*mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	store := w.store(url("t1"))
	name, whole := store.largest(t, "p/")
	store.replace(t, name, flipped(whole, 500_000))
	write(t, a, "v", 2, 400_000, 200_000)
	op := finish(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "deep", Repair: true}))(t))
	if op.State != catalog.Failed || op.Damage != 1 || op.Findings[0].Repaired || !strings.Contains(op.Error, "nothing proves what was there any more") {
		t.Errorf("repair of what nobody has: %+v", op)
	}
	next, created, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "next", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := succeed(t, a, created); !strings.Contains(last.Note, "b, has lost data: a full backup was made") {
		t.Errorf("note %q", last.Note)
	}
	if b := must(a.Backup(t.Context(), next.ID.String()))(t); b.Incremental() || b.Damage != "" {
		t.Errorf("the next backup: %+v", b.Backup)
	}
}
