package agent

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"varve/catalog"
)

// B16: those who ask at once get no more together than the quota has.
func TestQuotaAtOnce(t *testing.T) {
	_, a := startWithTarget(t)
	if err := a.SetQuota(t.Context(), map[catalog.Resource]int64{catalog.VolumeCount: 5}); err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	var askers sync.WaitGroup
	for i := range 16 {
		askers.Go(func() {
			_, err := a.CreateVolume(t.Context(), NewVolume{Name: fmt.Sprintf("v%d", i), Size: mib})
			if err == nil {
				made.Add(1)
				return
			}
			wantError(t, err, TooLarge, "VolumeLimitExceeded", "(5)")
		})
	}
	askers.Wait()
	if there := must(a.Volumes(t.Context()))(t); made.Load() != 5 || len(there) != 5 {
		t.Errorf("%d volumes were made and %d are there, want 5", made.Load(), len(there))
	}
}

// B16: the quota is remembered, and a resource that there is none of is refused.
func TestQuotaStays(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	limits := map[catalog.Resource]int64{catalog.BackupCount: 7, catalog.VolumeGigabytes: 9}
	if err := a.SetQuota(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	wantError(t, a.SetQuota(t.Context(), map[catalog.Resource]int64{"cows": 1}), Invalid, "cows", "backup_gigabytes")
	wantError(t, a.SetQuota(t.Context(), map[catalog.Resource]int64{catalog.BackupCount: -2}), Invalid, "-1 for no limit")
	if err := a.SetQuota(t.Context(), map[catalog.Resource]int64{catalog.VolumeGigabytes: NoLimit}); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for _, q := range must(w.start(dir).Quota(t.Context()))(t) {
		want := int64(NoLimit)
		if q.Resource == catalog.BackupCount {
			want = 7
		}
		if q.Limit != want {
			t.Errorf("the quota of %s is %d, want %d", q.Resource, q.Limit, want)
		}
	}
}
