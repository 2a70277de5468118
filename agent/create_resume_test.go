package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

// errNotMounted is of a target that is away, and that no retries bring back.
var errNotMounted = &object.Error{Op: "put", Store: "swift://t1", Err: object.ErrAway}

// objectsOf returns the names in the store that are no part of the repository
// itself.
func objectsOf(t *testing.T, s *faulty) (names []string) {
	t.Helper()
	for info, err := range s.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != "repo" && !strings.Contains(info.Name, "/k/") { // a volume's key stays for its next backup
			names = append(names, info.Name)
		}
	}
	return names
}

// A target that is away: the backup stays creating and says what it waits for,
// and goes on when the target is back. B5
func TestBackupWaitsForItsTarget(t *testing.T) {
	w, a := startWithTarget(t)
	a.insistence.first = time.Hour
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	w.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op == "put" && strings.HasPrefix(name, "p/") {
			return errNotMounted
		}
		return nil
	})
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for o := range a.WatchOperation(t.Context(), op.ID) {
		if o.Waits != "" {
			if !strings.Contains(o.Waits, "target t1 is away, tried again at") || !strings.Contains(o.Waits, "file system mounted") {
				t.Errorf("it waits for %q", o.Waits)
			}
			break
		}
	}
	if got := must(a.Backup(t.Context(), b.ID.String()))(t).Status; got != catalog.Creating {
		t.Errorf("while its target is away the backup is %s", got)
	}
	// Others may move data meanwhile, and guests come and go.
	if got := statusOf(t, a, "v"); got != catalog.BackingUp {
		t.Errorf("volume %s", got)
	}
	write(t, a, "v", 2, 0, mib)

	// Cancel does not wait. B19
	begun := time.Now()
	w.store(url("t1")).on(nil)
	if err := a.CancelOperation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("cancel took %v", took)
	}
	if _, err := a.Backup(t.Context(), b.ID.String()); ReasonOf(err) != NotFound {
		t.Errorf("the canceled backup: %v", err)
	}
	endRunning(t, a)
	if left := objectsOf(t, w.store(url("t1"))); len(left) > 0 {
		t.Errorf("a canceled backup leaves %q", left)
	}
	nothingTemporary(t, a)
	nothingLeft(t, a)
}

// When the target is back, backups and restores go on by themselves.
func TestOperationsGoOnWhenTheTargetIsBack(t *testing.T) {
	w, a := startWithTarget(t)
	a.insistence = insistence{first: time.Millisecond, most: time.Millisecond, limit: time.Minute}
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := w.store(url("t1"))
	var mu sync.Mutex
	awayFor := func(calls int) {
		s.on(func(_ context.Context, op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			if calls--; calls%3 != 0 && calls > 0 {
				return errNotMounted
			}
			return nil
		})
	}
	awayFor(30)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	if b.Status != catalog.Available {
		t.Errorf("backup %s", b.Status)
	}
	awayFor(30)
	v := restore(t, a, "b", RestoreRequest{Name: "r"})
	s.on(nil)
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))
	same(t, "restored", content(t, a, v.ID.String()), pattern(1, mib))
	nothingTemporary(t, a)
	nothingLeft(t, a)
	var data int
	for _, name := range objectsOf(t, s) {
		if strings.HasPrefix(name, "p/") {
			data++
		}
	}
	if data != 1 {
		t.Errorf("%d packs of data were stored, 1 is needed", data)
	}
}

// endRunning waits for all operations to end.
func endRunning(t *testing.T, a *Agent) {
	t.Helper()
	for _, op := range must(a.Operations(t.Context()))(t) {
		finish(t, a, op)
	}
}

// B19: canceled while the target does not answer, the backup is gone at once,
// and its objects when the target is back, also under another daemon.
func TestCancelWithoutATarget(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := w.store(url("t1"))
	reached := s.waitAt("put", 2) // behind the pack
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	s.on(func(context.Context, string, string) error { return errNotMounted })
	if err := a.CancelOperation(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Backup(t.Context(), b.ID.String()); ReasonOf(err) != NotFound {
		t.Errorf("the canceled backup: %v", err)
	}
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("volume %s", got)
	}
	nothingTemporary(t, a)
	if left := objectsOf(t, s); len(left) == 0 {
		t.Fatal("nothing was stored: the test shows nothing")
	}
	a.Close()
	s.on(nil)
	a = w.start(dir)
	endRunning(t, a)
	for _, name := range objectsOf(t, s) {
		if strings.HasPrefix(name, "s/") || strings.Contains(name, "/b/") {
			t.Errorf("a canceled backup leaves %q", name)
		}
	}
	nothingLeft(t, a)
}

// What cannot go on ends in error, with the reason, and leaves nothing.
func TestBackupCannotGoOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason string
		lose   func(t *testing.T, dir string, volume, backup layers.ID)
	}{
		{"snapshot", "snapshot that it copied is gone", func(t *testing.T, dir string, volume, backup layers.ID) {
			v := must(layers.Open(filepath.Join(dir, "volumes", volume.String()), layers.Options{}))(t)
			for _, b := range v.Boundaries() {
				if err := v.DeleteSnapshot(b.ID, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		{"volume", "is missing", func(t *testing.T, dir string, volume, backup layers.ID) {
			if err := os.RemoveAll(filepath.Join(dir, "volumes", volume.String())); err != nil {
				t.Fatal(err)
			}
		}},
		{"checkpoint", "cannot be read", func(t *testing.T, dir string, volume, backup layers.ID) {
			c := must(catalog.Open(filepath.Join(dir, "catalog"), nil))(t)
			err := c.Update(func(tx *catalog.Tx) error {
				for point, err := range catalog.Checkpoints.All(tx) {
					point.State = []byte(`"nonsense"`)
					if err := errors.Join(err, catalog.Checkpoints.Put(tx, point)); err != nil {
						return err
					}
				}
				return nil
			})
			if err := errors.Join(err, c.Close()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			a := w.start(dir)
			addTarget(t, a, "t1")
			createVolume(t, a, "v", mib)
			write(t, a, "v", 1, 0, mib)
			d := attach(t, a, "v") // so that there is a temporary snapshot
			reached := w.store(url("t1")).waitAt("put", 1)
			b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "b", Force: true})
			if err != nil {
				t.Fatal(err)
			}
			<-reached
			d.detach()
			a.Close()
			c.lose(t, dir, b.VolumeID, b.ID)
			w.store(url("t1")).on(nil)
			a = w.start(dir)
			endRunning(t, a)
			got := must(a.Backup(t.Context(), b.ID.String()))(t)
			if got.Status != catalog.Error || !strings.Contains(got.FailReason, c.reason) {
				t.Errorf("backup %s: %q", got.Status, got.FailReason)
			}
			if last := must(a.Operation(t.Context(), op.ID))(t); last.State != catalog.Failed || !strings.Contains(last.Error, c.reason) {
				t.Errorf("operation %+v", last)
			}
			nothingLeft(t, a)
			left := objectsOf(t, w.store(url("t1")))
			if c.name == "checkpoint" {
				left = nil // Nobody knows what it has stored: pruning finds it.
			}
			for _, name := range left {
				t.Errorf("%s is left", name)
			}
			if c.name == "volume" {
				return // Its snapshots are shown for as long as it is.
			}
			nothingTemporary(t, a)
			if got := statusOf(t, a, "v"); got != catalog.Available {
				t.Errorf("volume %s", got)
			}
			same(t, "volume", content(t, a, "v"), pattern(1, mib))
		})
	}
}
