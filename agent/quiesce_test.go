package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/catalog"
	"varve/e2e/testbed"
	"varve/layers"
)

// ext4 mounts a fresh file system that has nothing to do with any volume.
func ext4(t *testing.T) string {
	t.Helper()
	testbed.RequireRoot(t)
	testbed.Require(t, "mkfs.ext4")
	dir := t.TempDir()
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	for _, words := range [][]string{
		{"truncate", "-s", "256M", image}, {"mkfs.ext4", "-q", image}, {"mkdir", point}, {"mount", "-o", "loop", image, point},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
	t.Cleanup(func() {
		exec.Command("fsfreeze", "-u", point).Run() // It should not be frozen any more.
		// A program that looked at it may be about to end.
		for deadline := time.Now().Add(patience); ; {
			err := unix.Unmount(point, 0)
			if err == nil {
				return
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	})
	return point
}

// hooks gives the volume v hooks that write to a file, and returns what it
// says.
func hooks(t *testing.T, a *Agent, pre, post string) (said func() []string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	text := func(command string) *string {
		command = strings.ReplaceAll(command, "$LOG", log)
		return &command
	}
	must(a.ChangeVolume(t.Context(), "v", VolumeChange{PreSnapshot: text(pre), PostSnapshot: text(post)}))(t)
	return func() []string {
		b, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		os.Remove(log)
		return strings.Fields(string(b))
	}
}

const tellHook = `echo $VARVE_HOOK:$VARVE_VOLUME:$VARVE_SNAPSHOT:$VARVE_OUTCOME >> $LOG`

// noQuiet expects that nothing is left to be undone.
func noQuiet(t *testing.T, a *Agent) {
	t.Helper()
	if quiets := must(a.Volume(t.Context(), "v"))(t).Quiets; len(quiets) != 0 {
		t.Errorf("quiets are left: %+v", quiets)
	}
}

// S2: hooks run before and after, if somebody uses the volume.
func TestHooks(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	_, a := startWithTarget(t)
	v := createVolume(t, a, "v", mib)
	said := hooks(t, a, tellHook+"; echo $VARVE_VOLUME_ID:$AWS_SECRET_ACCESS_KEY >> $LOG", tellHook)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "unused"}))(t)
	if got := said(); len(got) != 0 {
		t.Errorf("a volume that nobody uses: hooks said %q", got)
	}
	d := attach(t, a, "v")
	d.write(1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	want := []string{"pre-snapshot:v:s:", v.ID.String() + ":", "post-snapshot:v:s:made"}
	if got := said(); !slices.Equal(got, want) || s.Note != "" || s.Consistency != catalog.CrashConsistent {
		t.Errorf("hooks said %q, want %q; %+v", got, want, s)
	}
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "none", Quiesce: Quiesce{NoHooks: true}}))(t)
	if got := said(); len(got) != 0 {
		t.Errorf("without hooks they said %q", got)
	}
	// A backup's snapshot has them too.
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b", Force: true})
	if got := said(); len(got) != 3 || got[2] != "post-snapshot:v:backup_"+b.ID.String()+":made" {
		t.Errorf("of a backup hooks said %q", got)
	}
	noQuiet(t, a)
	nothingTemporary(t, a)
	d.detach()
}

// S2: a hook before that fails refuses the snapshot, and the one after runs.
func TestHookThatFails(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	d := attach(t, a, "v")
	defer d.detach()
	said := hooks(t, a, "echo cannot reach the database >&2; exit 3", tellHook)
	_, err := a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"})
	wantError(t, err, Conflict, "no snapshot of volume v was made", "exit status 3", "cannot reach the database")
	if got, want := said(), []string{"post-snapshot:v:s:failed"}; !slices.Equal(got, want) {
		t.Errorf("hooks said %q, want %q", got, want)
	}
	_, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "b", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, a, op); last.State != catalog.Failed || !strings.Contains(last.Error, "cannot reach") {
		t.Errorf("backup %+v", last)
	}
	if s := must(a.Snapshots(t.Context(), "v", true))(t); len(s) != 0 {
		t.Errorf("snapshots %+v are left", s)
	}
	noQuiet(t, a)
	nothingTemporary(t, a)

	// One after that fails is a note: the snapshot is there.
	hooks(t, a, "", "echo oh >&2; exit 1")
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "noted"}))(t)
	stored := must(a.Snapshot(t.Context(), "noted"))(t)
	if !strings.Contains(s.Note, "post-snapshot hook") || !strings.Contains(s.Note, "oh") || stored.Note != s.Note || stored.Status != catalog.Available {
		t.Errorf("note %q, stored %q, %s", s.Note, stored.Note, stored.Status)
	}
	noQuiet(t, a)
}

// S2: a hook ends at its limit, with all that it started. What it leaves
// running on purpose does not hold it.
func TestHookThatHangs(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", mib)
	d := attach(t, a, "v")
	defer d.detach()
	hooks(t, a, "sleep 1000 & sleep 1000", "")
	limit := 100 * time.Millisecond
	must(a.ChangeVolume(t.Context(), "v", VolumeChange{HookLimit: &limit}))(t)
	_, err := a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"})
	wantError(t, err, Conflict, "at its limit of 100ms")
	limit = patience
	must(a.ChangeVolume(t.Context(), "v", VolumeChange{HookLimit: &limit}))(t)
	said := hooks(t, a, "sleep 1000 & echo $! >> $LOG", "")
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	exec.Command("kill", said()...).Run() // What it left.
}

func TestVolumeChangesThatAreRefused(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", mib)
	text := func(s string) *string { return &s }
	long, negative := 11*time.Minute, -time.Second
	for _, tt := range []struct {
		change VolumeChange
		want   string
	}{
		{VolumeChange{Name: text("a/b")}, "contains"},
		{VolumeChange{Name: text("")}, "empty"},
		{VolumeChange{Description: text("\xff")}, "description"},
		{VolumeChange{Properties: map[string]string{"": "x"}}, "property"},
		{VolumeChange{PreSnapshot: text(strings.Repeat("x", maxHookCommand+1))}, "hook"},
		{VolumeChange{PostSnapshot: text("a\x00b")}, "hook"},
		{VolumeChange{HookLimit: &long}, "limit"},
		{VolumeChange{HookLimit: &negative}, "limit"},
	} {
		_, err := a.ChangeVolume(t.Context(), "v", tt.change)
		wantError(t, err, Invalid, tt.want)
	}
	_, err := a.ChangeVolume(t.Context(), "nobody", VolumeChange{})
	wantError(t, err, NotFound, "nobody")
	v := must(a.ChangeVolume(t.Context(), "v", VolumeChange{Name: text("w"), Properties: map[string]string{"k": "v"}}))(t)
	if v.Name != "w" || v.Properties["k"] != "v" {
		t.Errorf("changed to %+v", v.Volume)
	}
}

// S2: file systems that are named are frozen and go on; they may be anywhere
// but where the daemon writes.
func TestSnapshotFreezes(t *testing.T) {
	point := ext4(t)
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s", Quiesce: Quiesce{Mounts: []string{point + "/"}}}))(t)
	if s.Consistency != catalog.Frozen || s.Note != "" {
		t.Errorf("consistency %q, note %q", s.Consistency, s.Note)
	}
	noQuiet(t, a)
	if err := os.WriteFile(filepath.Join(point, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		q    Quiesce
		want string
	}{
		{Quiesce{Mounts: []string{"/nowhere"}}, "no such file"},
		{Quiesce{Mounts: []string{filepath.Join(point, "lost+found")}}, "nothing is mounted there"},
		{Quiesce{Mounts: []string{point}, NoFreeze: true}, "switched off"},
		{Quiesce{FreezeLimit: time.Hour}, "at most"},
		{Quiesce{FreezeLimit: -1}, "at most"},
	} {
		_, err := a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "no", Quiesce: tt.q})
		wantError(t, err, Invalid, tt.want)
	}
	b := newWorld(t).start(filepath.Join(point, "state"))
	createVolume(t, b, "v", mib)
	_, err := b.CreateSnapshot(t.Context(), "v", NewSnapshot{Quiesce: Quiesce{Mounts: []string{point}}})
	wantError(t, err, Invalid, "is in that file system")
	b.Close()
	if got := must(a.Snapshots(t.Context(), "v", true))(t); len(got) != 1 {
		t.Errorf("%d snapshots, want 1", len(got))
	}
}

// S2: the daemon and its helper die at once while a file system is frozen and a
// hook has run: the next start thaws it, and runs the hook that is due.
func TestDaemonDiesDuringAQuiet(t *testing.T) {
	for _, made := range []bool{false, true} {
		point := ext4(t)
		w := newWorld(t)
		dir := t.TempDir()
		a := w.start(dir)
		v := createVolume(t, a, "v", mib)
		said := hooks(t, a, "", tellHook)
		s := catalog.Snapshot{ID: layers.NewID(), VolumeID: v.ID, Name: "s", Status: catalog.Creating}
		err := a.update(func(tx *catalog.Tx) error {
			return errors.Join(catalog.Snapshots.Put(tx, s), change(tx, catalog.Volumes, v.ID, func(r *catalog.Volume) {
				r.Quiets = []catalog.Quiet{{SnapshotID: s.ID, SnapshotName: s.Name, Mounts: []string{"/nowhere", point}, Hook: true}}
			}))
		})
		if err != nil {
			t.Fatal(err)
		}
		if made {
			if err := a.volumes[v.ID].data.Snapshot(s.ID); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		if err := exec.Command("fsfreeze", "-f", point).Run(); err != nil {
			t.Fatal(err)
		}
		a = w.start(dir)
		if err := os.WriteFile(filepath.Join(point, "f"), nil, 0o600); err != nil { // Waits for the thaw.
			t.Error(err)
		}
		for deadline := time.Now().Add(patience); len(must(a.Volume(t.Context(), "v"))(t).Quiets) > 0; {
			if time.Now().After(deadline) {
				t.Fatal("the quiet does not end")
			}
		}
		if got, want := said(), []string{"post-snapshot:v:s:" + outcome(made)}; !slices.Equal(got, want) {
			t.Errorf("hooks said %q, want %q", got, want)
		}
		if !strings.Contains(w.logged(), "/nowhere") {
			t.Error("the log does not tell of the mount that is not there")
		}
		a.Close()
	}
}
