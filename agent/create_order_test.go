package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/layers"
)

// B3: what a backup copies and stores is as much as the volume's data, and as
// what changed, however large the volume. B6: object_count is how many objects
// there are more afterwards, and size is the volume's.
func TestBackupCostsItsData(t *testing.T) {
	type cost struct{ changed, logical, stored, objects, total int64 }
	costs := map[int64][]cost{}
	const small, large = 64 * mib, 1 << 40
	for _, size := range []int64{small, large} {
		w, a := startWithTarget(t)
		createVolume(t, a, "v", size)
		write(t, a, "v", 1, 0, 2*mib)
		write(t, a, "v", 2, size-mib, mib)
		for _, name := range []string{"full", "next"} {
			before := objectNames(t, w.store(url("t1")))
			b, op, err := a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: name, Incremental: name == "next"})
			if err != nil {
				t.Fatal(err)
			}
			op = succeed(t, a, op)
			made := must(a.Backup(t.Context(), b.ID.String()))(t)
			after := objectNames(t, w.store(url("t1")))
			if added := int64(len(after) - len(before)); made.ObjectCount != added {
				t.Errorf("%s of %d bytes: object_count %d, and the target has %d objects more: %q, before %q", name, size, made.ObjectCount, added, after, before)
			}
			if made.Size != size || made.Incremental() != (name == "next") {
				t.Errorf("%s: size %d, incremental %v", name, made.Size, made.Incremental())
			}
			costs[size] = append(costs[size], cost{made.Changed, made.Logical, made.Stored, made.ObjectCount, op.Total})
			write(t, a, "v", 3, 512<<10, 4096)
		}
	}
	for i, want := range costs[small] {
		got := costs[large][i]
		stored := got.stored - want.stored // the root names every span of 1 GiB: 48 KB for each TiB
		if got.changed != want.changed || got.logical != want.logical || got.total != want.total || got.objects != want.objects || stored > 48_000 {
			t.Errorf("backup %d: %+v of 1 TiB, and %+v of 64 MiB with the same data", i, got, want)
		}
	}
	if next := costs[large][1]; next.changed != 4096 {
		t.Errorf("the incremental of 4096 changed bytes copied %d", next.changed)
	}
}

// A5: temporary snapshot, copy, delete it: at each object that is stored the
// snapshot is there and the backup's record names it, and at the end neither.
func TestTemporarySnapshotOutlastsTheCopy(t *testing.T) {
	w, a := startWithTarget(t)
	v := createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, 4*mib)
	var mu sync.Mutex
	seen, lacks := 0, []string{}
	w.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op != "put" {
			return nil
		}
		snapshot, recorded := temporaryOf(t, a, v.ID)
		mu.Lock()
		defer mu.Unlock()
		seen++
		if snapshot.IsZero() || snapshot != recorded {
			lacks = append(lacks, fmt.Sprintf("%s: snapshot %s, recorded %s", name, snapshot, recorded))
		}
		return nil
	})
	b := backUp(t, a, NewBackup{Volume: "v"})
	w.store(url("t1")).on(nil)
	if seen == 0 || len(lacks) > 0 {
		t.Errorf("of %d objects these were stored without the snapshot: %q", seen, lacks)
	}
	if snapshot, recorded := temporaryOf(t, a, v.ID); !snapshot.IsZero() || !recorded.IsZero() || !b.TempSnapshotID.IsZero() {
		t.Errorf("after the backup: snapshot %s, recorded %s", snapshot, recorded)
	}
	nothingTemporary(t, a)
}

// temporaryOf returns the system snapshot of a volume, and the one that the
// record of a backup of it names.
func temporaryOf(t *testing.T, a *Agent, volume layers.ID) (snapshot, recorded layers.ID) {
	snapshots, err := a.Snapshots(t.Context(), volume.String(), true)
	if err != nil {
		t.Error(err)
	}
	for _, s := range snapshots {
		if s.System {
			snapshot = s.ID
		}
	}
	backups, err := a.Backups(t.Context())
	if err != nil {
		t.Error(err)
	}
	for _, b := range backups {
		if !b.TempSnapshotID.IsZero() {
			recorded = b.TempSnapshotID
		}
	}
	return snapshot, recorded
}

// objectNames are the names in a store, in order, without those of sessions:
// they say that a backup was being made, and are no part of it.
func objectNames(t *testing.T, s *faulty) (names []string) {
	t.Helper()
	for info, err := range s.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(info.Name, "s/") {
			names = append(names, info.Name)
		}
	}
	slices.Sort(names)
	return names
}
