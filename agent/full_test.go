package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/catalog"
	"varve/layers"
)

// smallDisk mounts an empty file system of so many bytes.
func smallDisk(t *testing.T, bytes string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+bytes); err != nil {
		if os.Getenv("STRICT") == "1" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("no small disk can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fillDisk takes all room, also what work in the background gives back, and
// returns the file that holds it.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "fill")
	f := must(os.Create(path))(t)
	defer f.Close()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := f.Write(make([]byte, 4096)); err == nil {
			continue
		}
		growing := must(filepath.Glob(filepath.Join(dir, "state", "volumes", "*", "*.tmp")))(t)
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Bavail == 0 && len(growing) == 0 {
			return path
		}
	}
	t.Fatal("the disk does not fill")
	return ""
}

// The disk of the state folder is full: the guest and whoever asks get errors
// that say so, the daemon stays, what was flushed is there, and with room again
// everything goes on.
func TestDiskOfTheStateFolderIsFull(t *testing.T) {
	small := smallDisk(t, "400m")
	w := newWorld(t)
	dir := filepath.Join(small, "state")
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", 64*mib)
	write(t, a, "v", 1, 0, 4*mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s2"}))(t)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})

	fill := fillDisk(t, small)
	d := attach(t, a, "v")
	_, err := d.Layer.(*layers.Volume).WriteAt(pattern(2, 8*mib), 8*mib)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v, want ENOSPC", err)
	}
	d.detach()
	for range 50 {
		_, err = a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "no room"})
		wantError(t, err, Unavailable, "no space", "make room")
	}
	_, err = a.CreateVolume(t.Context(), NewVolume{Name: "no room", Size: mib})
	wantError(t, err, Unavailable, "no space", "make room")
	v, op, err := a.RestoreBackup(t.Context(), "b", RestoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, a, op); last.State != catalog.Failed {
		t.Errorf("a restore without room: %s", last.State)
	}
	if err := a.DeleteVolume(t.Context(), v.ID.String()); err != nil {
		t.Error(err)
	}
	if s := must(a.Status(t.Context()))(t); len(s.Warnings) == 0 {
		t.Error("the status does not warn")
	}
	if volumes := must(a.Volumes(t.Context()))(t); len(volumes) != 1 || volumes[0].Status != catalog.Available {
		t.Errorf("volumes %+v, want v alone, available", volumes)
	}

	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteSnapshot(t.Context(), "s2"); err != nil {
		t.Error(err)
	}
	write(t, a, "v", 3, 8*mib, mib)
	same(t, "the beginning", content(t, a, "v")[:4*mib], pattern(1, 4*mib))
	same(t, "what was written with room again", content(t, a, "v")[8*mib:9*mib], pattern(3, mib))
	restore(t, a, "b", RestoreRequest{Name: "restored"})
	same(t, "restored", content(t, a, "restored")[:4*mib], pattern(1, 4*mib))
}
