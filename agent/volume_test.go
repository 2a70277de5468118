package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"varve/catalog"
	"varve/layers"
)

// V1, V3, V5: what a volume shows.
func TestVolumeShowsWhatItIsAndTakes(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	made := must(a.CreateVolume(t.Context(), NewVolume{
		Name: "db", Description: "d", Size: 64 * mib, Properties: map[string]string{"k": "v"},
	}))(t)
	if made.Status != catalog.Available || made.Type != "default" || made.Created.IsZero() {
		t.Errorf("made %+v, want an available volume of the default type", made)
	}
	empty := must(a.Volume(t.Context(), "db"))(t)
	write(t, a, "db", 1, 0, 4*mib)
	s := must(a.CreateSnapshot(t.Context(), "db", NewSnapshot{Name: "s"}))(t)
	write(t, a, "db", 2, 0, 2*mib)
	v := must(a.Volume(t.Context(), made.ID.String()))(t)
	if v.Name != "db" || v.Description != "d" || v.Size != 64*mib || v.Properties["k"] != "v" || v.Status != catalog.Available {
		t.Errorf("shown %+v", v.Volume)
	}
	if grown := v.Allocated - empty.Allocated; grown < 6*mib || grown > 24*mib {
		t.Errorf("6 MiB written take %d bytes on disk", grown)
	}
	if len(v.Snapshots) != 1 || v.Snapshots[0].ID != s.ID || v.Snapshots[0].Name != "s" {
		t.Errorf("snapshots %+v, want s", v.Snapshots)
	}
	if len(v.Snapshots) == 1 && (v.Snapshots[0].Bytes < 2*mib || v.Snapshots[0].Bytes > 4*mib) {
		t.Errorf("s alone holds %d bytes, 2 MiB of it are hidden", v.Snapshots[0].Bytes)
	}
}

func TestVolumesThatCannotBeMadeLeaveNothing(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	for _, n := range []NewVolume{
		{Name: "v", Size: 0},
		{Name: "v", Size: -4096},
		{Name: "v", Size: 1000},
		{Name: "a/b", Size: mib},
		{Name: "v", Size: mib, Description: strings.Repeat("x", maxDescription+1)},
		{Name: "v", Size: mib, Properties: map[string]string{"": "x"}},
		{Name: "v", Size: mib, Properties: map[string]string{"k": strings.Repeat("x", maxProperties)}},
		{Name: "v", Size: mib, Properties: map[string]string{"k": "\xff"}},
	} {
		_, err := a.CreateVolume(t.Context(), n)
		wantError(t, err, Invalid)
	}
	_, err := a.CreateVolume(t.Context(), NewVolume{Name: "v", Size: 1 << 62})
	wantError(t, err, TooLarge, "16 TiB")
	if volumes := must(a.Volumes(t.Context()))(t); len(volumes) != 0 {
		t.Errorf("%d volumes, want none", len(volumes))
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "volumes")); len(entries) != 0 {
		t.Errorf("folders %v are left", entries)
	}
}

// V4: growing, also while in use; shrinking is refused and says why.
func TestVolumeGrowsAndNeverShrinks(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", 4*mib)
	d := attach(t, a, "v")
	d.write(1, 0, 4*mib)
	grown := must(a.GrowVolume(t.Context(), "v", 8*mib))(t)
	if grown.Size != 8*mib || grown.Status != catalog.InUse || d.Layer.Size() != 8*mib {
		t.Errorf("grown to %d, the export to %d, status %s", grown.Size, d.Layer.Size(), grown.Status)
	}
	same(t, "grown volume", readAll(t, d.Layer), append(pattern(1, 4*mib), make([]byte, 4*mib)...))
	d.detach()
	_, err := a.GrowVolume(t.Context(), "v", 4*mib)
	wantError(t, err, Invalid, "cannot shrink", "lost")
	_, err = a.GrowVolume(t.Context(), "v", 8*mib+1)
	wantError(t, err, Invalid, "multiple")
	_, err = a.GrowVolume(t.Context(), "nobody", 16*mib)
	wantError(t, err, NotFound, "nobody")
}

// V6: a volume that is in use, or read, is not deleted and nothing changes.
func TestDeletingAVolume(t *testing.T) {
	w, a := startWithTarget(t)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})

	d := attach(t, a, "v")
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "in use", "detach")
	if got := statusOf(t, a, "v"); got != catalog.InUse {
		t.Errorf("status %s after the refusal, want in-use", got)
	}
	d.detach()
	s := must(a.OpenExport(t.Context(), "v@s"))(t)
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "read")
	s.Close()
	g := w.store(url("t1")).shut("put")
	_, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	wantError(t, a.DeleteVolume(t.Context(), "v"), Conflict, "backup")
	close(g.opened)
	succeed(t, a, op)

	if err := a.DeleteVolume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.volumeDir(v.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if left := must(a.Snapshots(t.Context(), "", true))(t); len(left) != 0 {
		t.Errorf("snapshots %v are left", left)
	}
	_, err = a.Volume(t.Context(), "v")
	wantError(t, err, NotFound)
	want := append(pattern(1, mib), make([]byte, 3*mib)...)
	same(t, "the backup of the deleted volume", imageContent(t, a, b.ID), want)
}

// V10: a volume that another process has open is shown with the reason, and is
// neither used nor deleted; the others are there.
func TestVolumeThatIsOpenElsewhere(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	v := createVolume(t, a, "v", mib)
	createVolume(t, a, "other", mib)
	a.Close()
	elsewhere := must(layers.Open(filepath.Join(dir, "volumes", v.ID.String()), layers.Options{}))(t)
	defer elsewhere.Close()
	a = w.start(dir)
	view := must(a.Volume(t.Context(), "v"))(t)
	if view.Status != catalog.Error || !strings.Contains(view.Reason, "process") {
		t.Errorf("status %s, reason %q, want error and the holder", view.Status, view.Reason)
	}
	_, err := a.OpenExport(t.Context(), "v")
	wantError(t, err, InUse, "process")
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "process")
	write(t, a, "other", 1, 0, mib)
}

// C3 for volumes, C4 as far as it goes: a volume that cannot be opened hides no
// other, one that the catalog does not know is taken in with its snapshots.
func TestVolumesAreFoundInTheStateFolder(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	good, bad, missing := createVolume(t, a, "good", mib), createVolume(t, a, "bad", mib), createVolume(t, a, "missing", mib)
	write(t, a, "good", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "good", NewSnapshot{Name: "s"}))(t)
	write(t, a, "good", 2, 0, mib)
	a.Close()
	folder := func(id layers.ID) string { return filepath.Join(dir, "volumes", id.String()) }
	spoil(t, folder(bad.ID))
	if err := errors.Join(
		os.RemoveAll(folder(missing.ID)),
		os.CopyFS(folder(layers.NewID()), os.DirFS(folder(good.ID))),
		os.MkdirAll(filepath.Join(dir, "volumes", "lost+found"), 0o700),
	); err != nil {
		t.Fatal(err)
	}

	a = w.start(dir)
	for _, ref := range []string{"bad", "missing"} {
		v := must(a.Volume(t.Context(), ref))(t)
		if v.Status != catalog.Error || v.Reason == "" {
			t.Errorf("%s: status %s, reason %q, want error and why", ref, v.Status, v.Reason)
		}
		if err := a.DeleteVolume(t.Context(), ref); err != nil {
			t.Errorf("delete the %s volume: %v", ref, err)
		}
	}
	same(t, "good", content(t, a, "good"), pattern(2, mib))
	same(t, "good@s", content(t, a, "good@s"), pattern(1, mib))
	a.Close()

	// The catalog is lost: names are, data is not.
	if err := os.RemoveAll(filepath.Join(dir, "catalog")); err != nil {
		t.Fatal(err)
	}
	a = w.start(dir)
	same(t, "good, taken in", content(t, a, good.ID.String()), pattern(2, mib))
	same(t, "its snapshot", content(t, a, s.ID.String()), pattern(1, mib))
	copied := 0
	for _, v := range must(a.Volumes(t.Context()))(t) {
		if v.ID != good.ID {
			copied++
			if v.Status != catalog.Error || !strings.Contains(v.Reason, good.ID.String()) {
				t.Errorf("the copy under another name: status %s, reason %q", v.Status, v.Reason)
			}
		}
	}
	if copied != 1 || !strings.Contains(w.logged(), "taken in") {
		t.Errorf("%d copies are shown, want 1, with a warning in the log", copied)
	}
}

// A damaged record hides no other, and the volume is found by its folder.
func TestVolumeOfADamagedRecord(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	v := createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	createVolume(t, a, "other", mib)
	a.Close()
	db := must(badger.Open(badger.DefaultOptions(filepath.Join(dir, "catalog")).WithLogger(nil)))(t)
	err := db.Update(func(tx *badger.Txn) error {
		return errors.Join(
			tx.Set([]byte("volume/"+v.ID.String()), []byte("{")),
			tx.Set([]byte("backup/"+layers.NewID().String()), []byte("{")))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	a = w.start(dir)
	same(t, "v", content(t, a, v.ID.String()), pattern(1, mib))
	write(t, a, "other", 2, 0, mib)
	if b := must(a.Backups(t.Context()))(t); len(b) != 0 {
		t.Errorf("backups %+v", b)
	}
	if !strings.Contains(w.logged(), "left out") {
		t.Error("the log does not tell of the damaged record")
	}
}

// spoil overwrites the middle of every file of a volume but its lock.
func spoil(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.WriteFile(filepath.Join(dir, e.Name()), []byte("not what was written"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
