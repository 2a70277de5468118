package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// summed waits until all of a volume below its newest snapshot has checksums.
func summed(t *testing.T, a *Agent, ref string) {
	t.Helper()
	_, v, err := a.findVolume(ref)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		report, err := v.data.Check(t.Context(), layers.CheckOptions{})
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no checksums: %+v, %v", report, err)
		}
		if report.Unchecked == 0 {
			return
		}
	}
}

// rot flips a bit of the block at off in each file of a volume that has
// something there.
func rot(t *testing.T, a *Agent, id layers.ID, off int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.volumeDir(id), "*.data"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range files {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, layers.BlockSize)
		if n, _ := f.ReadAt(p, off); n > 0 && !layers.IsZero(p) {
			p[7] ^= 1
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			count++
		}
		f.Close()
	}
	if count != 1 {
		t.Fatalf("%d files have data at %d, want 1", count, off)
	}
}

func check(t *testing.T, a *Agent, ref string, repair bool) catalog.Operation {
	t.Helper()
	return finish(t, a, must(a.CheckVolume(t.Context(), ref, repair))(t))
}

// S8: rot is found, placed, and repaired from a backup that has the block,
// whichever it is; what none has stays damaged and says so.
func TestCheckFindsAndRepairs(t *testing.T) {
	w, a := startWithTarget(t)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 2*mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s1"}))(t)
	backUp(t, a, NewBackup{Volume: "v", Name: "old", Snapshot: "s1"})
	write(t, a, "v", 2, 2*mib, mib)
	want := content(t, a, "v")
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s2"}))(t)
	summed(t, a, "v")
	last := check(t, a, "v", false)
	if last.State != catalog.Succeeded || last.Damage != 0 || len(last.Findings) != 0 || !strings.Contains(last.Note, "3 MiB of data were compared") {
		t.Fatalf("a sound volume: %+v", last)
	}
	if last.Total == 0 || last.Done != last.Total {
		t.Errorf("progress %d of %d", last.Done, last.Total)
	}

	rot(t, a, v.ID, 4096)
	rot(t, a, v.ID, mib)
	last = check(t, a, "v", false)
	if last.State != catalog.Failed || last.Damage != 2 || len(last.Findings) != 2 || !strings.Contains(last.Error, "volume check v --repair") {
		t.Errorf("two rotten blocks: %+v", last)
	}
	for i, off := range []int64{4096, mib} {
		if f := last.Findings[i]; f.Offset != off || f.Layer.IsZero() || f.Repaired || f.Expected == f.Found || f.Found == "" || !strings.HasSuffix(f.File, ".data") {
			t.Errorf("finding %+v, want one at %d", f, off)
		}
	}
	last = check(t, a, "v", true)
	if last.State != catalog.Succeeded || last.Damage != 0 || len(last.Findings) != 2 || !last.Findings[0].Repaired || !strings.Contains(last.Note, "2 from backup old") {
		t.Errorf("repaired: %+v", last)
	}
	if last = check(t, a, "v", true); last.State != catalog.Succeeded || len(last.Findings) != 0 {
		t.Errorf("after the repair: %+v", last)
	}
	same(t, "v", content(t, a, "v"), want)

	// One that the backup has, and one that it has not.
	rot(t, a, v.ID, 8192)
	rot(t, a, v.ID, 2*mib)
	last = check(t, a, "v", true)
	if last.State != catalog.Failed || last.Damage != 1 || len(last.Findings) != 2 || last.Findings[0].Repaired || !last.Findings[1].Repaired ||
		!strings.Contains(last.Error, "cannot be repaired from a backup; the newest, old of ") {
		t.Errorf("half repaired: %+v", last)
	}

	// A target that does not answer is told, and harms nothing.
	w.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op == "get" && !strings.HasPrefix(name, "v/") {
			return errFault
		}
		return nil
	})
	rot(t, a, v.ID, 12288)
	if last = check(t, a, "v", true); last.State != catalog.Failed || last.Damage == 0 {
		t.Errorf("without a target: %+v", last)
	}
	w.store(url("t1")).on(nil)

	createVolume(t, a, "w", mib)
	write(t, a, "w", 1, 0, mib)
	must(a.CreateSnapshot(t.Context(), "w", NewSnapshot{}))(t)
	summed(t, a, "w")
	rot(t, a, must(a.Volume(t.Context(), "w"))(t).ID, 0)
	if last = check(t, a, "w", true); last.State != catalog.Failed || !strings.Contains(last.Error, "there is no backup") {
		t.Errorf("without a backup: %+v", last)
	}
	_, err := a.CheckVolume(t.Context(), "nobody", false)
	wantError(t, err, NotFound, "nobody")
}

// A check keeps its volume from being deleted, and can be canceled.
func TestCheckCanceled(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	createVolume(t, a, "v", mib)
	for range maxMoving { // So that the check waits.
		must(a.place(t.Context()))(t)
	}
	op := must(a.CheckVolume(t.Context(), "v", false))(t)
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "check")
	died := copyState(t, dir)
	if err := a.CancelOperation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if last := must(a.Operation(t.Context(), op.ID))(t); last.State != catalog.Canceled {
		t.Errorf("canceled: %+v", last)
	}
	if err := a.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
	b := w.start(died)
	if last := must(b.Operation(t.Context(), op.ID))(t); last.State != catalog.Failed || !strings.Contains(last.Error, "daemon stopped") {
		t.Errorf("cut off: %+v", last)
	}
	if last := check(t, b, "v", false); last.State != catalog.Succeeded {
		t.Errorf("again: %+v", last)
	}
}
