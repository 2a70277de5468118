package api

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/agent"
)

// One volume's life over the API, with its backups: every call of the client.
func TestLife(t *testing.T) {
	h := start(t, panickingMounts{})
	ctx, c := t.Context(), h.client
	dir := t.TempDir()

	v, err := c.CreateVolume(ctx, NewVolume{Name: "db 1ä", SizeBytes: 1<<30 + 4096, Description: "d", Metadata: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	if v.Size != 2 || v.SizeBytes != 1<<30+4096 || v.Status != "available" || v.Bootable != "false" || v.VolumeType != "default" ||
		text(v.Description) != "d" || v.Metadata["k"] != "v" || v.CreatedAt.IsZero() || v.URI != "nbd:db 1ä" || len(v.Attachments) != 0 {
		t.Errorf("new volume: %+v", v)
	}
	if v, err = c.GrowVolume(ctx, "db 1ä", 2<<30); err != nil || v.SizeBytes != 2<<30 {
		t.Errorf("grow: %+v, %v", v, err)
	}
	if _, err = c.GrowVolume(ctx, v.ID, 1<<30); err == nil {
		t.Error("a volume shrinks")
	}
	if all, err := c.Volumes(ctx, Page{}); err != nil || len(all) != 1 || all[0].ID != v.ID {
		t.Errorf("volumes: %+v, %v", all, err)
	}

	s, err := c.CreateSnapshot(ctx, NewSnapshot{VolumeID: v.ID, Name: "monday"})
	if err != nil || s.VolumeID != v.ID || s.Size != 2 || s.VolumeName != v.Name {
		t.Fatalf("snapshot: %+v, %v", s, err)
	}
	if got, err := c.Snapshot(ctx, "monday"); err != nil || got.ID != s.ID {
		t.Errorf("snapshot by name: %+v, %v", got, err)
	}
	if all, err := c.Snapshots(ctx, v.ID, false, Page{}); err != nil || len(all) != 1 {
		t.Errorf("snapshots: %+v, %v", all, err)
	}

	target, _, err := c.AddTarget(ctx, NewTarget{Name: "usb", URL: "file://" + filepath.Join(dir, "t"), Passphrase: "secret"})
	if err != nil || !target.Encrypted {
		t.Fatalf("target: %+v, %v", target, err)
	}
	if target, err = c.SyncTarget(ctx, "usb"); err != nil || target.SyncedAt.IsZero() {
		t.Errorf("sync: %+v, %v", target, err)
	}
	if all, err := c.Targets(ctx); err != nil || len(all) != 1 {
		t.Errorf("targets: %+v, %v", all, err)
	}

	first, second := "full", "next"
	b, o, err := c.CreateBackup(ctx, NewBackup{VolumeID: v.ID, Name: &first, SnapshotID: &s.Name})
	if err != nil || b.Status != "creating" || o.SubjectID != b.ID {
		t.Fatalf("backup: %+v, %+v, %v", b, o, err)
	}
	h.succeeds(o)
	_, o, err = c.CreateBackup(ctx, NewBackup{VolumeID: v.ID, DisplayName: &second, Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	h.succeeds(o)
	all, err := c.Backups(ctx, Filter{}) // B12: newest first
	if err != nil || len(all) != 2 || all[0].Name != "next" || all[1].Name != "full" {
		t.Fatalf("backups: %+v, %v", all, err)
	}
	// B6, B7, B8, B11
	if !all[0].IsIncremental || all[0].HasDependentBackups || all[0].SnapshotID != nil || all[0].Size != 2 || all[0].Container != "usb" {
		t.Errorf("incremental: %+v", all[0])
	}
	if all[1].IsIncremental || !all[1].HasDependentBackups || text(all[1].SnapshotID) != s.ID || all[1].DataTimestamp != s.CreatedAt {
		t.Errorf("full: %+v, of snapshot %+v", all[1], s)
	}

	// B9: refused with 400, nothing changed.
	_, err = c.DeleteBackup(ctx, "full", false)
	var e *Error
	if !errors.As(err, &e) || e.Code != 400 || e.Message != "Invalid backup: Incremental backups exist for this backup." || e.RequestID == "" {
		t.Errorf("delete a parent: %v", err)
	}
	if o, err = c.VerifyBackup(ctx, "next", true); err != nil {
		t.Fatal(err)
	}
	h.succeeds(o)
	r, o, err := c.RestoreBackup(ctx, "next", NewRestore{}) // B13
	if err != nil || r.VolumeName != "restore_backup_"+all[0].ID || r.BackupID != all[0].ID {
		t.Fatalf("restore: %+v, %v", r, err)
	}
	h.succeeds(o)
	if v, err := c.Volume(ctx, r.VolumeID); err != nil || v.Name != "db 1ä" || v.Status != "available" {
		t.Errorf("restored volume: %+v, %v", v, err)
	}
	if o, err = c.Operation(ctx, o.ID, 0); err != nil || !o.Ended() || o.State != "succeeded" {
		t.Errorf("ended operation: %+v, %v", o, err)
	}
	if _, err = c.CancelOperation(ctx, o.ID); !errors.As(err, &e) || e.Reason != agent.Conflict {
		t.Errorf("cancel an ended operation: %v", err)
	}
	if ops, err := c.Operations(ctx); err != nil || len(ops) != 4 || ops[0].ID != o.ID {
		t.Errorf("operations: %+v, %v", ops, err)
	}
	for _, name := range []string{"next", "full"} { // B10
		if o, err = c.DeleteBackup(ctx, name, false); err != nil {
			t.Fatal(err)
		}
		h.succeeds(o)
	}

	st, err := c.Status(ctx)
	if err != nil || st.Volumes != 2 || st.Snapshots != 1 || st.Backups != 0 || len(st.Targets) != 1 || st.Targets[0].Error != nil || st.PID != os.Getpid() {
		t.Errorf("status: %+v, %v", st, err)
	}
	for _, err := range []error{
		c.DeleteSnapshot(ctx, s.ID), c.DeleteVolume(ctx, v.ID), c.DeleteVolume(ctx, r.VolumeID), c.RemoveTarget(ctx, "usb"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Volume(ctx, v.ID); !errors.As(err, &e) || e.Code != 404 {
		t.Errorf("a deleted volume: %v", err)
	}
	if m, err := c.Mounts(ctx); err != nil || len(m) != 0 {
		t.Errorf("mounts: %v, %v", m, err)
	}
	if strings.Contains(h.log.String(), "secret\"") || slices.Contains(strings.Fields(h.log.String()), "secret") {
		t.Errorf("a secret is in the log:\n%s", h.log)
	}
}

// succeeds follows an operation to its end, by its events and by a long poll.
func (h *harness) succeeds(o Operation) {
	h.t.Helper()
	for next, err := range h.client.WatchOperation(h.t.Context(), o.ID) {
		if err != nil {
			h.t.Fatalf("follow %s: %v", o.Kind, err)
		}
		o = next
	}
	polled, err := h.client.Operation(h.t.Context(), o.ID, maxWait)
	if err != nil || o.State != "succeeded" || polled.State != "succeeded" {
		h.t.Fatalf("%s: %+v, polled %+v, %v: %s", o.Kind, o, polled, err, text(o.Error))
	}
}
