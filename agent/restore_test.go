package agent

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"varve/catalog"
)

// B13: a restore makes a new volume beside the source.
func TestRestoreMakesAVolume(t *testing.T) {
	w, a := startWithTarget(t)
	source := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, mib, mib)
	want := content(t, a, "v")
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	write(t, a, "v", 2, 0, 4*mib)

	g := w.store(url("t1")).shut("get")
	made, op, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	during := must(a.Volume(t.Context(), made.ID.String()))(t)
	if during.Name != "restore_backup_"+b.ID.String() || during.Status != catalog.RestoringBackup ||
		during.Description != "auto-created_from_restore_from_backup" || during.Size != 4*mib || during.Type != "default" {
		t.Errorf("while it runs: %+v", during.Volume)
	}
	if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Restoring {
		t.Errorf("the backup is %s, want restoring", got)
	}
	_, err = a.OpenExport(t.Context(), during.Name)
	wantError(t, err, Conflict, "restore")
	wantError(t, a.DeleteVolume(t.Context(), during.Name), Conflict, "restore")
	_, err = a.DeleteBackup(t.Context(), "b", true)
	wantError(t, err, Conflict, "restoring")
	close(g.opened)
	succeed(t, a, op)

	after := must(a.Volume(t.Context(), made.ID.String()))(t)
	if after.Name != "v" || after.Status != catalog.Available || after.ID == source.ID {
		t.Errorf("after: %+v", after.Volume)
	}
	if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
		t.Errorf("the backup is %s, want available", got)
	}
	same(t, "restored", content(t, a, made.ID.String()), want)
	same(t, "source", content(t, a, source.ID.String()), pattern(2, 4*mib))
	named := restore(t, a, "b", RestoreRequest{Name: "other"})
	if named.Name != "other" {
		t.Errorf("named %q, want other", named.Name)
	}
	_, _, err = a.RestoreBackup(t.Context(), "b", RestoreRequest{Name: "a/b"})
	wantError(t, err, Invalid, "name")
	_, _, err = a.RestoreBackup(t.Context(), "x", RestoreRequest{})
	wantError(t, err, NotFound)
}

// B14: onto an existing volume, which must be told, free and large enough.
func TestRestoreOverwritesAVolume(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, 64<<10)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	must(a.CreateVolume(t.Context(), NewVolume{Name: "old", Description: "d", Size: 4 * mib}))(t)
	write(t, a, "old", 2, 0, 4*mib)
	must(a.CreateSnapshot(t.Context(), "old", NewSnapshot{Name: "s"}))(t)
	createVolume(t, a, "small", mib/2)
	to := func(r RestoreRequest) error { _, _, err := a.RestoreBackup(t.Context(), "b", r); return err }
	wantError(t, to(RestoreRequest{Volume: "old"}), Conflict, "overwrites", "force")
	wantError(t, to(RestoreRequest{Volume: "old", Name: "n", Force: true}), Invalid, "name")
	wantError(t, to(RestoreRequest{Volume: "small", Force: true}), Conflict, "524288", "1048576")
	wantError(t, to(RestoreRequest{Volume: "x", Force: true}), NotFound)
	d := attach(t, a, "old")
	wantError(t, to(RestoreRequest{Volume: "old", Force: true}), InUse, "detach")
	d.detach()
	same(t, "old after the refusals", content(t, a, "old"), pattern(2, 4*mib))

	v := restore(t, a, "b", RestoreRequest{Volume: "old", Force: true})
	if v.Name != "old" || v.Description != "d" || v.Type != "default" || v.Size != 4*mib || v.Status != catalog.Available || v.PreviousStatus != "" {
		t.Errorf("after: %+v", v.Volume)
	}
	same(t, "overwritten", content(t, a, "old"), append(pattern(1, 64<<10), make([]byte, 4*mib-64<<10)...))
	same(t, "its snapshot", content(t, a, "old@s"), pattern(2, 4*mib))
	restore(t, a, "b", RestoreRequest{Volume: "v", Force: true})
}

// B14: what lies behind the backup in a larger volume reads zero, whatever was
// there, and takes no space: no zeros are written.
func TestRestoreIntoALargerVolumeWritesNoZeros(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	const large = 64 << 30
	createVolume(t, a, "large", large)
	write(t, a, "large", 2, large-4*mib, 4*mib)
	v := restore(t, a, "b", RestoreRequest{Volume: "large", Force: true})
	if v.Allocated < mib || v.Allocated > 3*mib {
		t.Errorf("%d bytes are allocated, want little more than the backup's %d", v.Allocated, mib)
	}
	e := must(a.OpenExport(t.Context(), "large"))(t)
	defer e.Close()
	for off, want := range map[int64][]byte{0: pattern(1, mib), mib: make([]byte, mib), large - 4*mib: make([]byte, 4*mib)} {
		got := make([]byte, len(want))
		if _, err := e.Layer.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		same(t, "at "+strconv.FormatInt(off, 10), got, want)
	}
}

// B15: damage in the target is an error that names what is damaged, and the
// volume is never silently wrong.
func TestRestoreOfADamagedBackup(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	createVolume(t, a, "old", mib)
	write(t, a, "old", 2, 0, mib)
	s := w.store(url("t1"))
	largest := damageLargest(t, s)

	v, op, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	last := finish(t, a, op)
	view := must(a.Volume(t.Context(), v.ID.String()))(t)
	if last.State != catalog.Failed || !strings.Contains(last.Error, largest) {
		t.Errorf("operation %s: %q, want failed and %s named", last.State, last.Error, largest)
	}
	if view.Status != catalog.Error || !strings.Contains(view.Reason, "incomplete") {
		t.Errorf("volume %s, %q, want error", view.Status, view.Reason)
	}
	_, op, err = a.RestoreBackup(t.Context(), "b", RestoreRequest{Volume: "old", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, a, op)
	if got := statusOf(t, a, "old"); got != catalog.ErrorRestoring {
		t.Errorf("the overwritten volume is %s, want error_restoring", got)
	}
	if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
		t.Errorf("the backup is %s, want available", got)
	}
	op = must(a.VerifyBackup(t.Context(), "b", true))(t)
	if last := finish(t, a, op); last.State != catalog.Failed || !strings.Contains(last.Error, largest) {
		t.Errorf("verify: %s, %q, want failed and %s named", last.State, last.Error, largest)
	}
	succeed(t, a, must(a.DeleteBackup(t.Context(), "b", false))(t)) // B17
	write(t, a, "v", 3, 0, 4096)
	backUp(t, a, NewBackup{Volume: "v", Name: "good"})
	if v := restore(t, a, "good", RestoreRequest{Volume: "old", Force: true}); v.Status != catalog.Available || v.Reason != "" {
		t.Errorf("restored again: %s, %q", v.Status, v.Reason)
	}
}

// damageLargest flips a bit in the middle of the largest object of a store.
func damageLargest(t testing.TB, s *faulty) (name string) {
	t.Helper()
	var size int64
	for info, err := range s.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size > size {
			name, size = info.Name, info.Size
		}
	}
	p := make([]byte, size)
	if n, err := s.Store.Get(t.Context(), name, p, 0); n < len(p) {
		t.Fatal(err)
	}
	p[size/2] ^= 1
	if err := s.Store.Put(t.Context(), name, p); err != nil {
		t.Fatal(err)
	}
	return name
}

// A verified backup says what was read.
func TestVerifyAWholeBackup(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	for _, deep := range []bool{false, true} {
		op := succeed(t, a, must(a.VerifyBackup(t.Context(), "b", deep))(t))
		if !strings.Contains(op.Note, "whole") {
			t.Errorf("deep %v: note %q", deep, op.Note)
		}
	}
}

// B19: a canceled restore leaves the backup available and the volume in error.
func TestCanceledRestore(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	s := w.store(url("t1"))
	for _, r := range []RestoreRequest{{}, {Volume: "v", Force: true}} {
		reached := s.waitAt("get", 2)
		v, op, err := a.RestoreBackup(t.Context(), "b", r)
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		if err := a.CancelOperation(t.Context(), op.ID); err != nil {
			t.Fatal(err)
		}
		s.on(nil)
		if got := must(a.Operation(t.Context(), op.ID))(t).State; got != catalog.Canceled {
			t.Errorf("operation %s, want canceled", got)
		}
		if got := statusOf(t, a, v.ID.String()); got != catalog.Error {
			t.Errorf("volume %s, want error", got)
		}
		if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
			t.Errorf("backup %s, want available", got)
		}
	}
	v := restore(t, a, "b", RestoreRequest{Volume: must(a.Volumes(t.Context()))(t)[0].ID.String(), Force: true})
	same(t, "restored after all", content(t, a, v.ID.String()), pattern(1, mib))
}

// A restore that never got to its target has not touched the volume.
func TestRestoreFromATargetThatIsAway(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	a.Close()
	w.store(url("t1")).on(func(context.Context, string, string) error { return errFault })
	a = w.start(dir)
	_, op, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{Volume: "v", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, a, op); last.State != catalog.Failed || !strings.Contains(last.Error, "t1") {
		t.Errorf("operation %s: %q", last.State, last.Error)
	}
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("volume %s, want available: it was not touched", got)
	}
	same(t, "volume", content(t, a, "v"), pattern(1, mib))
}

// B8, B9, B10, B17: deleting backups that lean on each other.
func TestDeletingBackups(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	var want [][]byte
	for i, name := range []string{"b0", "b1", "b2"} {
		write(t, a, "v", uint64(i), int64(i)*mib, mib)
		want = append(want, content(t, a, "v"))
		backUp(t, a, NewBackup{Volume: "v", Name: name, Incremental: i > 0})
	}
	before := must(a.Backups(t.Context()))(t)
	_, err := a.DeleteBackup(t.Context(), "b1", false)
	wantError(t, err, Conflict)
	if err != nil && err.Error() != "Invalid backup: Incremental backups exist for this backup." {
		t.Errorf("the text is %q", err)
	}
	if after := must(a.Backups(t.Context()))(t); !reflect.DeepEqual(after, before) {
		t.Errorf("the refusal has changed something: %+v, before %+v", after, before)
	}
	succeed(t, a, must(a.DeleteBackup(t.Context(), "b1", true))(t))
	_, err = a.Backup(t.Context(), "b1")
	wantError(t, err, NotFound)
	v := restore(t, a, "b2", RestoreRequest{})
	same(t, "b2 without its parent", content(t, a, v.ID.String()), want[2])
	if must(a.Backup(t.Context(), "b0"))(t).HasDependents {
		t.Error("b0 has dependents though its last one is gone")
	}
	succeed(t, a, must(a.DeleteBackup(t.Context(), "b2", false))(t))
	v = restore(t, a, "b0", RestoreRequest{})
	same(t, "b0 alone", content(t, a, v.ID.String()), want[0])
	succeed(t, a, must(a.DeleteBackup(t.Context(), "b0", false))(t))
	if left := must(a.Backups(t.Context()))(t); len(left) != 0 {
		t.Errorf("%d backups are left", len(left))
	}
}

// A deletion that fails can be made again.
func TestDeletionThatFails(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	s := w.store(url("t1"))
	s.on(func(_ context.Context, op, _ string) error {
		if op == "put" || op == "delete" {
			return errFault
		}
		return nil
	})
	if last := finish(t, a, must(a.DeleteBackup(t.Context(), "b", false))(t)); last.State != catalog.Failed {
		t.Errorf("operation %s, want failed", last.State)
	}
	b := must(a.Backup(t.Context(), "b"))(t)
	if b.Status != catalog.ErrorDeleting || !strings.Contains(b.FailReason, errFault.Error()) {
		t.Errorf("backup %s: %q", b.Status, b.FailReason)
	}
	s.on(nil)
	succeed(t, a, must(a.DeleteBackup(t.Context(), "b", false))(t))
}

// A restore that is refused in the end frees the backup, where another one
// ended while it was asked for and left that to it.
func TestRefusedRestoreFreesTheBackup(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	g := w.store(url("t1")).shut("get")
	_, op, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{Volume: "v", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	if err := a.SetQuota(t.Context(), map[catalog.Resource]int64{catalog.VolumeCount: 1}); err != nil {
		t.Fatal(err)
	}
	a.readBackup(b.ID, 1) // as the second one does, before it is recorded
	close(g.opened)
	succeed(t, a, op)
	a.readBackup(b.ID, -1)
	_, _, err = a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	wantError(t, err, TooLarge, "volumes")
	if got := must(a.Backup(t.Context(), "b"))(t).Status; got != catalog.Available {
		t.Errorf("the backup is %s, and nobody restores it", got)
	}
}
