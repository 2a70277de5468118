package agent

import (
	"context"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// anotherHost starts a daemon that has the stores of w, by a way of its own:
// what is done to the calls of one is not done to those of the other.
func anotherHost(w *world) (*world, *Agent) {
	w.t.Helper()
	other := newWorld(w.t)
	other.stores[url("t1")] = &faulty{Store: w.store(url("t1")).Store}
	a := other.start(w.t.TempDir())
	addTarget(w.t, a, "t1")
	return other, a
}

// twoHosts starts two daemons with one target. The first has a volume v, of
// random bytes, with a full and an incremental backup that both know.
func twoHosts(t *testing.T) (w1 *world, one *Agent, w2 *world, two *Agent) {
	t.Helper()
	w1, one = startWithTarget(t)
	createVolume(t, one, "v", 2*mib)
	write(t, one, "v", 1, 0, mib)
	backUp(t, one, NewBackup{Volume: "v", Name: "full"})
	write(t, one, "v", 2, mib, mib)
	backUp(t, one, NewBackup{Volume: "v", Name: "inc", Incremental: true})
	w2, two = anotherHost(w1)
	return w1, one, w2, two
}

// whatTwoHolds is the content of the incremental backup of twoHosts.
func whatTwoHolds() []byte { return slices.Concat(pattern(1, mib), pattern(2, mib)) }

// atPacks makes reads of packs wait.
func atPacks(s *faulty) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	s.on(func(ctx context.Context, op, name string) error {
		if op != "get" || !strings.HasPrefix(name, "p/") {
			return nil
		}
		g.once.Do(func() { close(g.reached) })
		select {
		case <-g.opened:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g
}

// C5: one host deletes a backup and prunes while another restores, verifies and
// reads it. Whoever had begun comes to its end with the right bytes, since what
// was deleted stays for the grace; whoever comes later is told that it is gone.
func TestDeletionBesideUseByAnotherHost(t *testing.T) {
	_, one, w2, two := twoHosts(t)
	inc := must(two.Backup(t.Context(), "inc"))(t)
	image := must(two.OpenImage(t.Context(), inc.ID))(t)
	defer image.Close()
	g := atPacks(w2.store(url("t1")))
	restored, restoring, err := two.RestoreBackup(t.Context(), "inc", RestoreRequest{Name: "r"})
	if err != nil {
		t.Fatal(err)
	}
	g.await(t)
	for _, name := range []string{"inc", "full"} {
		succeed(t, one, must(one.DeleteBackup(t.Context(), name, false))(t))
	}
	for range 2 { // condemn, and look whether anything may go
		succeed(t, one, must(one.PruneTarget(t.Context(), "t1", Prune{RepackBelow: 60}))(t))
	}
	close(g.opened)
	succeed(t, two, restoring)
	same(t, "the restored volume", content(t, two, restored.ID.String()), whatTwoHolds())
	same(t, "the open image", readAll(t, image), whatTwoHolds())

	if err := two.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if got := backupNames(t, two); len(got) != 0 {
		t.Errorf("two still sees %q", got)
	}
	_, _, err = two.RestoreBackup(t.Context(), inc.ID.String(), RestoreRequest{})
	wantError(t, err, NotFound)
	_, err = two.VerifyBackup(t.Context(), "inc", true)
	wantError(t, err, NotFound)
}

// C2, C5: what a host asks of a backup that another deleted, before it has heard
// of it, ends with the truth and not with damage.
func TestUseOfWhatAnotherHostDeleted(t *testing.T) {
	_, one, _, two := twoHosts(t)
	for _, name := range []string{"inc", "full"} {
		succeed(t, one, must(one.DeleteBackup(t.Context(), name, false))(t))
	}
	_, op, err := two.RestoreBackup(t.Context(), "inc", RestoreRequest{Name: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, two, op); last.State != catalog.Failed || last.Reason != string(NotFound) {
		t.Errorf("the restore: %s, reason %q: %s", last.State, last.Reason, last.Error)
	}
	if last := finish(t, two, must(two.VerifyBackup(t.Context(), "inc", true))(t)); last.State != catalog.Failed || last.Reason != string(NotFound) {
		t.Errorf("the verification: %s, reason %q: %s", last.State, last.Reason, last.Error)
	}
	_, err = two.ChangeBackup(t.Context(), "full", BackupChange{Protected: ptr(true)})
	wantError(t, err, NotFound)
	succeed(t, two, must(two.DeleteBackup(t.Context(), "full", true))(t)) // It is deleted: so be it.
	if err := two.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if got := backupNames(t, two); len(got) != 0 {
		t.Errorf("two still sees %q", got)
	}
}

// C5: an incremental backup whose parent another host has deleted meanwhile is
// whole, whether this host has heard of that or not, and stays so when the other
// prunes.
func TestIncrementalOnWhatAnotherHostDeleted(t *testing.T) {
	for _, heard := range []bool{false, true} {
		_, one, _, two := twoHosts(t)
		createVolume(t, two, "w", mib)
		write(t, two, "w", 3, 0, mib)
		backUp(t, two, NewBackup{Volume: "w", Name: "parent"})
		if err := one.SyncTarget(t.Context(), "t1"); err != nil {
			t.Fatal(err)
		}
		succeed(t, one, must(one.DeleteBackup(t.Context(), "parent", false))(t))
		if heard {
			if err := two.SyncTarget(t.Context(), "t1"); err != nil {
				t.Fatal(err)
			}
		}
		write(t, two, "w", 4, 0, 4096)
		want := content(t, two, "w")
		b := backUp(t, two, NewBackup{Volume: "w", Name: "child", Incremental: true})
		succeed(t, one, must(one.PruneTarget(t.Context(), "t1", Prune{}))(t))
		succeed(t, two, must(two.VerifyBackup(t.Context(), "child", true))(t))
		same(t, "the child", imageContent(t, two, b.ID), want)
	}
}

// C5: two hosts back up volumes of one name, delete and prune at once, again and
// again. All that is there at the end reads as it was, on both; a name that both
// gave is refused with the ids.
func TestHostsAtOnce(t *testing.T) {
	_, one, _, two := twoHosts(t)
	hosts := []*Agent{one, two}
	createVolume(t, two, "v", 2*mib)
	write(t, two, "v", 7, 0, 2*mib)
	const rounds = 4
	var all sync.WaitGroup
	var want [2][rounds][]byte
	for i, a := range hosts {
		all.Go(func() {
			for round := range rounds {
				write(t, a, "v", uint64(10*i+round), int64(round)*65536, 65536)
				want[i][round] = content(t, a, "v")
				backUp(t, a, NewBackup{Volume: "v", Name: fmt.Sprint("round", round), Incremental: true})
				succeed(t, a, must(a.PruneTarget(t.Context(), "t1", Prune{RepackBelow: 60}))(t))
			}
		})
	}
	all.Wait()
	for _, a := range hosts {
		if err := a.SyncTarget(t.Context(), "t1"); err != nil {
			t.Fatal(err)
		}
		if got := backupNames(t, a); len(got) != 2+2*rounds {
			t.Errorf("%d backups, want %d: %q", len(got), 2+2*rounds, got)
		}
		_, err := a.Backup(t.Context(), "round1")
		wantError(t, err, Ambiguous, "2 backups are named")
		for _, b := range must(a.Backups(t.Context()))(t) {
			if b.Name == "full" || b.Name == "inc" {
				continue
			}
			var round int
			fmt.Sscanf(b.Name, "round%d", &round)
			maker := 0
			if b.VolumeID == must(two.Volume(t.Context(), "v"))(t).ID {
				maker = 1
			}
			same(t, fmt.Sprintf("%s of host %d", b.Name, maker), imageContent(t, a, b.ID), want[maker][round])
		}
	}
}

// C4: a host that lost its state, or a new one, has the same list from the target
// alone, but for what only the host that made a backup knows.
func TestCatalogFromTheTargetAlone(t *testing.T) {
	w1, one, _, two := twoHosts(t)
	must(one.ChangeBackup(t.Context(), "inc", BackupChange{Protected: ptr(true)}))(t)
	_, fresh := anotherHost(w1)
	if err := two.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	records := func(a *Agent) (all []catalog.Backup) {
		target := must(a.Target(t.Context(), "t1"))(t)
		for _, b := range must(a.Backups(t.Context()))(t) {
			if b.TargetID != target.ID {
				t.Errorf("backup %s is in target %s", b.Name, b.TargetID)
			}
			r := b.Backup
			r.TargetID, r.Updated, r.Duration = layers.ID{}, time.Time{}, 0
			all = append(all, r)
		}
		return all
	}
	want := records(one)
	for name, a := range map[string]*Agent{"the new host": fresh, "the other": two} {
		if got := records(a); !reflect.DeepEqual(got, want) {
			t.Errorf("%s has\n%+v, want\n%+v", name, got, want)
		}
	}
}

// C3: entries that are cut, foreign, swapped or empty hide no other, and those
// that say whose they are are shown as damaged.
func TestBadEntriesHideNoOther(t *testing.T) {
	w1, one, _, two := twoHosts(t)
	full, inc := must(one.Backup(t.Context(), "full"))(t), must(one.Backup(t.Context(), "inc"))(t)
	createVolume(t, one, "w", mib)
	backUp(t, one, NewBackup{Volume: "w", Name: "other"})
	store := w1.store(url("t1")).Store
	roots := map[string]string{} // by backup
	for info, err := range store.List(t.Context(), "v/") {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(info.Name, "/b/") {
			for _, b := range []BackupView{full, inc} {
				if strings.Contains(info.Name, b.ID.String()) {
					roots[b.Name] = info.Name
				}
			}
		}
	}
	root := make([]byte, 1<<16)
	n, _ := store.Get(t.Context(), roots["inc"], root, 0)
	root = root[:n]
	put := func(name string, data []byte) {
		t.Helper()
		if err := store.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
	}
	v := "v/" + inc.VolumeID.String() + "/"
	for _, foreign := range []string{"readme", v + "readme", v + "b/readme", v + "b/" + inc.ID.String(), v + "d/readme", v + "h/readme", "v/nobody/b/1", "s/readme", "g/readme"} {
		put(foreign, []byte("not Varve's"))
	}
	other := make([]byte, 1<<16)
	n, _ = store.Get(t.Context(), roots["full"], other, 0)
	for _, bad := range []struct {
		what  string
		bytes []byte
	}{{"empty", nil}, {"cut", root[:len(root)/2]}, {"of another backup", other[:n]}} {
		put(roots["inc"], bad.bytes)
		if err := two.SyncTarget(t.Context(), "t1"); err != nil {
			t.Fatalf("%s: %v", bad.what, err)
		}
		if got := backupNames(t, two); len(got) != 3 || !slices.Contains(got, "full available") || !slices.Contains(got, "other available") {
			t.Errorf("%s: %q", bad.what, got)
		}
		b := must(two.Backup(t.Context(), inc.ID.String()))(t)
		if b.Status != catalog.Error || !strings.Contains(b.FailReason, roots["inc"]) {
			t.Errorf("%s: status %s, reason %q, want error and the object's name", bad.what, b.Status, b.FailReason)
		}
	}
	put(roots["inc"], root)
	if err := two.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if b := must(two.Backup(t.Context(), "inc"))(t); b.Status != catalog.Available || b.FailReason != "" {
		t.Errorf("put right: status %s, reason %q", b.Status, b.FailReason)
	}
}

// C2, C3: a backup that is damaged keeps its name in the list, and goes from it
// when another host has deleted it; one that this host failed to make stays.
func TestADamagedBackupThatAnotherHostDeletedGoes(t *testing.T) {
	w1, one, w2, two := twoHosts(t)
	full := must(one.Backup(t.Context(), "full"))(t)
	store := w1.store(url("t1")).Store
	for info, err := range store.List(t.Context(), "v/") {
		if err == nil && strings.Contains(info.Name, "/b/") && strings.Contains(info.Name, full.ID.String()) {
			err = store.Put(t.Context(), info.Name, []byte("not a root"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	createVolume(t, two, "w", mib)
	write(t, two, "w", 3, 0, mib)
	w2.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op == "put" && strings.HasPrefix(name, "p/") {
			return fs.ErrPermission
		}
		return nil
	})
	_, op, err := two.CreateBackup(t.Context(), NewBackup{Volume: "w", Name: "failed"})
	if err != nil {
		t.Fatal(err)
	}
	if last := finish(t, two, op); last.State != catalog.Failed {
		t.Fatalf("the backup %s, want failed", last.State)
	}
	w2.store(url("t1")).on(nil)
	for _, want := range [][]string{{"failed error", "full error", "inc available"}, {"failed error", "inc available"}} {
		if err := two.SyncTarget(t.Context(), "t1"); err != nil {
			t.Fatal(err)
		}
		got := backupNames(t, two)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("two sees %q, want %q", got, want)
		}
		if len(want) == 3 {
			succeed(t, one, must(one.DeleteBackup(t.Context(), "full", true))(t))
		}
	}
}

// B12, C2: the list of a thousand backups asks no target for anything.
func TestListAsksNoTarget(t *testing.T) {
	w, a := startWithTarget(t)
	target := must(a.Target(t.Context(), "t1"))(t)
	volume := layers.NewID()
	err := a.update(func(tx *catalog.Tx) error {
		for i := range 1000 {
			record := fromRepository(repo.Backup{ID: layers.NewID(), Volume: volume, Name: fmt.Sprint("b", i), Created: instant(), Number: uint64(i + 1)}, target.ID)
			if err := catalog.Backups.Put(tx, record); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int64
	w.store(url("t1")).on(func(context.Context, string, string) error {
		requests.Add(1)
		return errFault
	})
	if got := len(must(a.Backups(t.Context()))(t)); got != 1000 {
		t.Errorf("%d backups, want 1000", got)
	}
	must(a.Backup(t.Context(), "b7"))(t)
	must(a.Images(t.Context()))(t)
	must(a.Targets(t.Context()))(t)
	must(a.Volumes(t.Context()))(t)
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests to the target", n)
	}
}
