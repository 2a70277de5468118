package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// B20: every state that a record can be in, and what reset-state makes of it.
// Empty is a refusal.
func TestResetState(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	lostBackup, lostSnapshot := b.Backup, s
	lostBackup.ID, lostBackup.Name = layers.NewID(), "lost"
	lostSnapshot.ID, lostSnapshot.Name = layers.NewID(), "lost"

	for _, status := range []catalog.Status{catalog.Creating, catalog.Available, catalog.Restoring, catalog.Deleting, catalog.Error, catalog.ErrorDeleting} {
		for _, to := range []catalog.Status{catalog.Available, catalog.Error, catalog.InUse, ""} {
			for _, record := range []catalog.Backup{b.Backup, lostBackup} {
				record.Status = status
				put(t, a, func(tx *catalog.Tx) error { return catalog.Backups.Put(tx, record) })
				got, err := a.ResetBackup(t.Context(), record.ID.String(), to)
				atWork := status == catalog.Creating || status == catalog.Restoring || status == catalog.Deleting
				refused := atWork || to == catalog.InUse || to == "" || record.Name == "lost" && to == catalog.Available
				wantReset(t, fmt.Sprintf("backup %s, %s to %s", record.Name, status, to), err, refused, got.Status, to)
				if err == nil && (got.FailReason == resetReason) != (to == catalog.Error) {
					t.Errorf("%s to %s: reason %q", status, to, got.FailReason)
				}
			}
		}
	}
	put(t, a, func(tx *catalog.Tx) error {
		return errors.Join(catalog.Backups.Put(tx, b.Backup), catalog.Backups.Delete(tx, lostBackup.ID))
	})

	for _, status := range []catalog.Status{catalog.Available, catalog.Error, catalog.ErrorDeleting, catalog.Deleting, catalog.Creating} {
		for _, to := range []catalog.Status{catalog.Available, catalog.Error} {
			for _, record := range []catalog.Snapshot{s, lostSnapshot} {
				record.Status = status
				put(t, a, func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, record) })
				got, err := a.ResetSnapshot(t.Context(), record.ID.String(), to)
				refused := status == catalog.Creating || record.Name == "lost" && to == catalog.Available
				wantReset(t, fmt.Sprintf("snapshot %s, %s to %s", record.Name, status, to), err, refused, got.Status, to)
			}
		}
	}
	put(t, a, func(tx *catalog.Tx) error {
		return errors.Join(catalog.Snapshots.Put(tx, s), catalog.Snapshots.Delete(tx, lostSnapshot.ID))
	})

	for _, status := range []catalog.Status{catalog.Available, catalog.Error, catalog.ErrorRestoring, catalog.ErrorDeleting} {
		for _, to := range []catalog.Status{catalog.Available, catalog.Error, catalog.Maintenance} {
			put(t, a, func(tx *catalog.Tx) error {
				return change(tx, catalog.Volumes, b.VolumeID, func(v *catalog.Volume) { v.Status, v.Reason = status, "why" })
			})
			got, err := a.ResetVolume(t.Context(), "v", to)
			wantReset(t, fmt.Sprintf("volume, %s to %s", status, to), err, to == catalog.Maintenance, got.Status, to)
		}
	}
	must(a.ResetVolume(t.Context(), "v", catalog.Available))(t)
	same(t, "volume after all resets", content(t, a, "v"), pattern(1, mib))
}

func put(t *testing.T, a *Agent, f func(*catalog.Tx) error) {
	t.Helper()
	if err := a.update(f); err != nil {
		t.Fatal(err)
	}
}

func wantReset(t *testing.T, what string, err error, refused bool, got, want catalog.Status) {
	t.Helper()
	switch {
	case refused && err == nil:
		t.Errorf("%s: not refused", what)
	case !refused && err != nil:
		t.Errorf("%s: %v", what, err)
	case !refused && got != want:
		t.Errorf("%s: it is %s", what, got)
	}
}

// What is at work is never reset, and neither is what would be untrue.
func TestResetStateIsRefused(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	d := attach(t, a, "v")
	_, err := a.ResetVolume(t.Context(), "v", catalog.Error)
	wantError(t, err, InUse, "detach")
	if v := must(a.ResetVolume(t.Context(), "v", catalog.Available))(t); v.Status != catalog.InUse {
		t.Errorf("an attached volume was set to %s", v.Status)
	}
	d.detach()

	reached := w.store(url("t1")).waitAt("put", 1)
	made, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	_, err = a.ResetBackup(t.Context(), made.ID.String(), catalog.Error)
	wantError(t, err, Conflict, "cancel")
	for _, state := range []catalog.Status{catalog.Available, catalog.Error} {
		_, err = a.ResetVolume(t.Context(), "v", state)
		wantError(t, err, Conflict, "a backup")
	}
	if err := a.CancelOperation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	// A target that is away vouches for nothing.
	w.store(url("t1")).on(func(context.Context, string, string) error { return errNotMounted })
	_, err = a.ResetBackup(t.Context(), "b", catalog.Available)
	wantError(t, err, Unavailable, "t1")
	if v := must(a.ResetBackup(t.Context(), "b", catalog.Error))(t); v.Status != catalog.Error || v.Updated.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("%+v", v.Backup)
	}
	_, err = a.OpenImage(t.Context(), b.ID)
	wantError(t, err, Conflict, "error")
}
