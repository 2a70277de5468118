package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

const secretWord = "correct horse battery staple"

// A target's secrets are in one file for its owner, and nowhere else.
func TestSecretsStayInTheirFile(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	n := NewTarget{Name: "t", URL: "s3://bucket/p", Passphrase: secretWord, Env: map[string]string{"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}}
	target := must(a.AddTarget(t.Context(), n))(t)
	if !target.Encrypted || target.URL != n.URL || target.Synced.IsZero() {
		t.Errorf("target %+v", target)
	}
	path := filepath.Join(dir, "secrets", target.ID.String())
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("secrets: mode %v, %v, want 0600", info.Mode(), err)
	}
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v"})
	a.Close()
	err = filepath.WalkDir(dir, func(file string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || file == path {
			return err
		}
		data, err := os.ReadFile(file)
		for _, secret := range []string{secretWord, "hunter2hunter2"} {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s holds a secret", file)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{secretWord, "hunter2hunter2"} {
		if strings.Contains(w.logged(), secret) {
			t.Error("the log holds a secret")
		}
	}
	for _, name := range []string{path, filepath.Dir(path)} {
		if err := os.Chmod(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a = w.start(dir) // They are enough to go on with.
	for name, want := range map[string]os.FileMode{path: 0o700, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want || !strings.Contains(w.logged(), "path="+name+" ") {
			t.Errorf("%s that others could read: %v, %v, or nothing is said", name, info.Mode(), err)
		}
	}
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))
	if err := a.RemoveTarget(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the secrets outlive the target")
	}
}

func TestTargetsThatCannotBeAdded(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	must(a.AddTarget(t.Context(), NewTarget{Name: "locked", URL: url("locked"), Passphrase: secretWord}))(t)
	w.store(url("broken")).on(func(context.Context, string, string) error { return errFault })
	for _, test := range []struct {
		n      NewTarget
		reason Reason
		says   string
	}{
		{NewTarget{Name: "", URL: url("x"), NoEncryption: true}, Invalid, "name"},
		{NewTarget{Name: "x", URL: "", NoEncryption: true}, Invalid, "target"},
		{NewTarget{Name: "x", URL: "ftp://x", NoEncryption: true}, Invalid, "ftp"},
		{NewTarget{Name: "x", URL: "s3://user:" + secretWord + "@x", NoEncryption: true}, Invalid, ""},
		{NewTarget{Name: "x", URL: url("x")}, Invalid, "passphrase"},
		{NewTarget{Name: "x", URL: url("x"), Passphrase: "p", NoEncryption: true}, Invalid, "passphrase"},
		{NewTarget{Name: "x", URL: url("x"), NoEncryption: true, Env: map[string]string{"LD_PRELOAD": "x"}}, Invalid, "LD_PRELOAD"},
		{NewTarget{Name: "t1", URL: url("x"), NoEncryption: true}, Conflict, "another name"},
		{NewTarget{Name: "x", URL: url("t1"), NoEncryption: true}, Conflict, "t1"},
		{NewTarget{Name: "x", URL: url("t1"), Passphrase: "p"}, Denied, "not encrypted"},
		{NewTarget{Name: "x", URL: url("locked"), Passphrase: "wrong"}, Denied, "passphrase"},
		{NewTarget{Name: "x", URL: url("broken"), NoEncryption: true}, Unavailable, "fire"},
	} {
		_, err := a.AddTarget(t.Context(), test.n)
		wantError(t, err, test.reason, test.says)
		if err != nil && strings.Contains(err.Error(), secretWord) {
			t.Errorf("the error shows a secret: %v", err)
		}
	}
	if _, err := a.AddTarget(t.Context(), NewTarget{Name: "x", URL: url("locked"), NoEncryption: true}); err == nil {
		t.Error("an encrypted repository is opened without a passphrase")
	}
	if targets := must(a.Targets(t.Context()))(t); len(targets) != 2 {
		t.Errorf("%d targets, want 2", len(targets))
	}
	if files, _ := os.ReadDir(filepath.Join(dir, "secrets")); len(files) != 2 {
		t.Errorf("%d files of secrets, want 2", len(files))
	}
}

// B1: everything is restored from the target alone.
func TestRestoreOnABareMachine(t *testing.T) {
	w, a := startWithTarget(t)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 2*mib)
	full := backUp(t, a, NewBackup{Volume: "v", Name: "full", Description: "d"})
	write(t, a, "v", 2, mib, mib)
	want := content(t, a, "v")
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	inc := backUp(t, a, NewBackup{Volume: "v", Name: "inc", Snapshot: "s", Incremental: true})
	old := must(a.Backups(t.Context()))(t)
	a.Close()

	b := w.start(t.TempDir())
	addTarget(t, b, "t1")
	found := must(b.Backups(t.Context()))(t)
	if len(found) != 2 {
		t.Fatalf("%d backups are found, want 2", len(found))
	}
	for i, got := range found {
		want := old[i]
		if got.ID != want.ID || got.Name != want.Name || got.Description != want.Description || got.VolumeID != v.ID ||
			got.VolumeName != "v" || got.ParentID != want.ParentID || got.SnapshotID != want.SnapshotID || got.Size != want.Size ||
			!got.Created.Equal(want.Created) || !got.DataTimestamp.Equal(want.DataTimestamp) || got.Stored != want.Stored ||
			got.Changed != want.Changed || got.Logical != want.Logical || got.ObjectCount != want.ObjectCount || got.HasDependents != want.HasDependents {
			t.Errorf("found %+v, made %+v", got, want)
		}
	}
	if found[0].ID != inc.ID || found[0].SnapshotID != s.ID || found[1].ID != full.ID {
		t.Errorf("found %s and %s", found[0].ID, found[1].ID)
	}
	restored := restore(t, b, "inc", RestoreRequest{})
	same(t, "restored", content(t, b, restored.ID.String()), want)
}

// C2, C3, C5: two daemons, one target: each sees what the other made and
// deleted, and a damaged backup hides no other.
func TestTwoDaemonsShareATarget(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t.TempDir()), w.start(t.TempDir())
	for _, a := range []*Agent{one, two} {
		addTarget(t, a, "t1")
	}
	createVolume(t, one, "v", mib)
	write(t, one, "v", 1, 0, mib)
	createVolume(t, two, "w", mib)
	write(t, two, "w", 2, 0, mib)
	v, x := backUp(t, one, NewBackup{Volume: "v", Name: "v"}), backUp(t, two, NewBackup{Volume: "w", Name: "w"})
	names := func(a *Agent) (names []string) {
		if err := a.SyncTarget(t.Context(), "t1"); err != nil {
			t.Error(err)
		}
		for _, b := range must(a.Backups(t.Context()))(t) {
			names = append(names, b.Name+" "+string(b.Status))
		}
		slices.Sort(names)
		return names
	}
	both := []string{"v available", "w available"}
	if got := names(one); !slices.Equal(got, both) {
		t.Errorf("one sees %q", got)
	}
	if got := names(two); !slices.Equal(got, both) {
		t.Errorf("two sees %q", got)
	}
	same(t, "two's backup at one", imageContent(t, one, x.ID), pattern(2, mib))
	succeed(t, two, must(two.DeleteBackup(t.Context(), "v", false))(t))
	if got := names(one); !slices.Equal(got, both[1:]) {
		t.Errorf("after the deletion one sees %q", got)
	}
	_, err := one.OpenImage(t.Context(), v.ID)
	wantError(t, err, NotFound)

	s := w.store(url("t1"))
	write(t, two, "w", 3, 0, mib)
	backUp(t, two, NewBackup{Volume: "w", Name: "w2"})
	for info := range s.Store.List(t.Context(), "") {
		if strings.Contains(info.Name, x.ID.String()) || strings.Contains(info.Name, strings.ReplaceAll(x.ID.String(), "-", "")) {
			if err := s.Store.Put(t.Context(), info.Name, []byte("not a root")); err != nil {
				t.Fatal(err)
			}
		}
	}
	fresh := w.start(t.TempDir())
	addTarget(t, fresh, "t1")
	got := must(fresh.Backups(t.Context()))(t)
	if len(got) != 2 || !slices.ContainsFunc(got, func(b BackupView) bool { return b.Name == "w2" && b.Status == catalog.Available }) ||
		!slices.ContainsFunc(got, func(b BackupView) bool { return b.ID == x.ID && b.Status == catalog.Error && b.FailReason != "" }) {
		t.Errorf("with one damaged: %+v", got)
	}
	succeed(t, fresh, must(fresh.DeleteBackup(t.Context(), x.ID.String(), true))(t)) // B17
	if got := names(fresh); !slices.Equal(got, []string{"w2 available"}) {
		t.Errorf("after deleting the damaged one: %q", got)
	}
}

// A sync leaves alone what this daemon is making or deleting.
func TestSyncBesideABackup(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	g := w.store(url("t1")).shut("put")
	b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	if err := a.SyncTarget(t.Context(), "t1"); err != nil {
		t.Error(err)
	}
	if got := must(a.Backup(t.Context(), b.ID.String()))(t).Status; got != catalog.Creating {
		t.Errorf("status %s after the sync, want creating", got)
	}
	wantError(t, a.RemoveTarget(t.Context(), "t1"), InUse)
	close(g.opened)
	succeed(t, a, op)
}

// B12: lists come from the catalog, however slow the target; what needs the
// target says that it is away, within its time.
func TestTargetThatHangs(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	a.Close()
	asked := make(chan struct{})
	var once sync.Once
	var calls atomic.Int64
	w.store(url("t1")).on(func(ctx context.Context, _, _ string) error {
		calls.Add(1)
		once.Do(func() { close(asked) })
		<-ctx.Done()
		return ctx.Err()
	})
	a = w.start(dir)
	ctx, expire := newDeadline(t.Context())
	syncErr := make(chan error)
	go func() { syncErr <- a.SyncTarget(ctx, "t1") }()
	<-asked
	before := calls.Load()
	if got := must(a.Backups(t.Context()))(t); len(got) != 1 || got[0].TargetName != "t1" {
		t.Errorf("backups %+v", got)
	}
	must(a.Images(t.Context()))(t)
	must(a.Targets(t.Context()))(t)
	if more := calls.Load() - before; more != 0 {
		t.Errorf("the lists asked the target %d times", more)
	}
	expire()
	wantError(t, <-syncErr, Unavailable, "t1", "reachable")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := a.OpenImage(short, b.ID)
	wantError(t, err, Unavailable, "t1")
	status := must(a.Status(short))(t)
	if len(status.Targets) != 1 || status.Targets[0].Error == "" || status.Targets[0].Backups != 1 {
		t.Errorf("targets %+v", status.Targets)
	}
	if !slices.ContainsFunc(status.Warnings, func(s string) bool { return strings.Contains(s, "t1") }) {
		t.Errorf("warnings %q", status.Warnings)
	}
}

// A deadline is a context whose time is over when the test says so.
type deadline struct {
	context.Context
	over chan struct{}
}

func newDeadline(ctx context.Context) (d *deadline, expire func()) {
	d = &deadline{ctx, make(chan struct{})}
	return d, sync.OnceFunc(func() { close(d.over) })
}

func (d *deadline) Done() <-chan struct{} { return d.over }

func (d *deadline) Err() error {
	select {
	case <-d.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestStatusAtAGlance(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	createVolume(t, a, "w", mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	backUp(t, a, NewBackup{Volume: "v"})
	d := attach(t, a, "w")
	defer d.detach()
	s := must(a.Status(t.Context()))(t)
	if s.Volumes != 2 || s.InUse != 1 || s.Snapshots != 1 || s.Backups != 1 || len(s.Targets) != 1 || s.Targets[0].Error != "" ||
		s.PID != os.Getpid() || s.Free <= 0 || s.Capacity < s.Free || len(s.Running) != 0 {
		t.Errorf("%+v", s)
	}
}

// B14: an operation that comes to its target while the daemon stops is told
// that, so that it goes on with the next one.
func TestTargetOfAStoppedDaemon(t *testing.T) {
	w := newWorld(t)
	a := w.start(t.TempDir())
	target := addTarget(t, a, "t1")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.holdTarget(target); !errors.Is(err, errStopped) {
		t.Errorf("the target says %v, want %v", err, errStopped)
	}
}

// RemoveTarget forgets; adding the place again brings the backups back.
func TestRemovedTargetKeepsItsBackups(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v"})
	if err := a.RemoveTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if n := len(must(a.Backups(t.Context()))(t)); n != 0 {
		t.Errorf("%d backups without a target", n)
	}
	_, err := a.Target(t.Context(), "t1")
	wantError(t, err, NotFound)
	addTarget(t, a, "t1")
	same(t, "backup", imageContent(t, a, b.ID), pattern(1, mib))
	if _, err := a.Target(t.Context(), layers.NewID().String()); ReasonOf(err) != NotFound {
		t.Errorf("%v", err)
	}
}

// Another repository in the place of a target's is not taken for it, though the
// daemon has the target open: nothing is written to it, and no backup is taken
// for deleted.
func TestTargetReplacedByAnother(t *testing.T) {
	w, a := startWithTarget(t)
	addTarget(t, a, "t2")
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	made := backUp(t, a, NewBackup{Volume: "v", Target: "t1"})
	t1, t2 := w.store(url("t1")), w.store(url("t2"))
	own := t1.Store
	t1.Store = t2.Store
	record := must(a.Target(t.Context(), "t1"))(t)
	forget := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.targets[record.ID].seen = time.Time{}
	}
	count := func() (n int) {
		for _, err := range t2.List(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	before := count()
	forget()
	wantError(t, a.SyncTarget(t.Context(), "t1"), Conflict, "another repository is there now", "remove the target")
	forget()
	_, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Target: "t1", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, a, op); last.State != catalog.Failed || !strings.Contains(last.Error, "another repository is there now") {
		t.Errorf("a backup into another repository: %s, %q", last.State, last.Error)
	}
	if after := count(); after != before {
		t.Errorf("the other repository has %d objects, had %d", after, before)
	}
	t1.Store = own
	forget()
	if err := a.SyncTarget(t.Context(), "t1"); err != nil {
		t.Error(err)
	}
	same(t, "backup", imageContent(t, a, made.ID), content(t, a, "v"))
}
