package agent

import (
	"slices"
	"testing"
	"time"

	"varve/catalog"
	"varve/layers"
)

// made are backups of those times, the newest first.
func madeAt(t *testing.T, times ...string) []BackupView {
	t.Helper()
	var line []BackupView
	for _, text := range times {
		at := must(time.Parse("2006-01-02 15:04", text))(t)
		line = append(line, BackupView{Backup: catalog.Backup{ID: layers.NewID(), Name: text, DataTimestamp: at}})
	}
	return line
}

// Retention keeps the newest of each period that has any, and counts such
// periods only.
func TestRetention(t *testing.T) {
	line := madeAt(t,
		"2026-03-02 10:30", // Monday, W10
		"2026-03-02 10:05",
		"2026-03-02 09:00",
		"2026-03-01 23:59", // Sunday, W09
		"2026-02-27 12:00",
		"2026-02-20 12:00",
		"2025-12-30 12:00", // W01 of 2026
		"2025-12-28 12:00", // Sunday, W52
		"2023-06-01 00:00",
	)
	for _, c := range []struct {
		keep Retention
		want []int // of line, kept
	}{
		{Retention{Last: 2}, []int{0, 1}},
		{Retention{Last: 100}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{Retention{Hourly: 3}, []int{0, 2, 3}},
		{Retention{Daily: 3}, []int{0, 3, 4}},
		{Retention{Weekly: 4}, []int{0, 3, 5, 6}},
		{Retention{Weekly: 5}, []int{0, 3, 5, 6, 7}},
		{Retention{Monthly: 3}, []int{0, 4, 6}},
		{Retention{Yearly: 3}, []int{0, 6, 8}},
		{Retention{Last: 1, Daily: 2, Yearly: 2}, []int{0, 3, 6}},
	} {
		if err := c.keep.check(); err != nil {
			t.Errorf("%+v: %v", c.keep, err)
		}
		var kept []int
		for i, d := range c.keep.decide(line) {
			if d.Backup.ID != line[i].ID {
				t.Fatalf("%+v: decision %d is about another backup", c.keep, i)
			}
			if d.Keep() {
				kept = append(kept, i)
			}
		}
		if !slices.Equal(kept, c.want) {
			t.Errorf("%+v keeps %v, want %v", c.keep, kept, c.want)
		}
	}
	reasons := Retention{Last: 1, Weekly: 2}.decide(line)[0].Reasons
	if !slices.Equal(reasons, []string{"last", "weekly 2026-W10"}) {
		t.Errorf("reasons %q", reasons)
	}
	line[0].Protected = true
	protected := Retention{Last: 1}.decide(line)
	if !slices.Equal(protected[0].Reasons, []string{"protected"}) || !protected[1].Keep() || protected[2].Keep() {
		t.Errorf("with the newest protected: %q, %q, %q", protected[0].Reasons, protected[1].Reasons, protected[2].Reasons)
	}
	wantError(t, Retention{}.check(), Invalid, "nothing would be kept")
	wantError(t, Retention{Last: 1, Daily: -1}.check(), Invalid, "-1")
}

// Each volume has its retention for itself, in each target; what others depend
// on goes, and they stay whole.
func TestExpireBackups(t *testing.T) {
	_, a := startWithTarget(t)
	for i, name := range []string{"v", "w"} {
		createVolume(t, a, name, mib)
		write(t, a, name, uint64(i+1), 0, mib)
		for _, n := range []string{"1", "2", "3"} {
			backUp(t, a, NewBackup{Volume: name, Name: name + n, Incremental: true})
		}
	}
	want := content(t, a, "v")
	rule := Expiry{Keep: Retention{Last: 1}, DryRun: true}
	decisions, begun, err := a.ExpireBackups(t.Context(), rule)
	if err != nil || len(begun) != 0 || len(decisions) != 6 || len(backupNames(t, a)) != 6 {
		t.Errorf("dry run: %d decisions, %d deletions, %v", len(decisions), len(begun), err)
	}
	rule.DryRun, rule.Volume = false, "v"
	_, begun, err = a.ExpireBackups(t.Context(), rule)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range begun {
		succeed(t, a, op)
	}
	if got := backupNames(t, a); !slices.Equal(got, []string{"v3 available", "w1 available", "w2 available", "w3 available"}) {
		t.Errorf("left: %q", got)
	}
	restored := restore(t, a, "v3", RestoreRequest{Name: "again"})
	same(t, "what depended on what is gone", content(t, a, restored.ID.String()), want)
	_, _, err = a.ExpireBackups(t.Context(), Expiry{Keep: rule.Keep, Volume: "nowhere"})
	wantError(t, err, NotFound, "nowhere")
}
