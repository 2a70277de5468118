package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"varve/catalog"
	"varve/layers"
)

// A Retention says which backups of a volume in a target to keep: the Last
// newest, and the newest one of each of the last so many hours, days, weeks,
// months and years that have any; of a fork each side for itself. Protected ones stay besides. Times are those of the data, UTC; weeks are
// those of ISO 8601.
type Retention struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
}

// A Decision is what a retention makes of a backup.
type Decision struct {
	Backup  BackupView
	Reasons []string // why it is kept; none: it is deleted
}

// Keep reports whether the backup stays.
func (d Decision) Keep() bool { return len(d.Reasons) > 0 }

// Expiry says of which backups to delete those that a retention does not keep.
type Expiry struct {
	Volume string // name or id, also of a volume that is gone; empty: every volume
	Target string // empty: every target
	Keep   Retention
	DryRun bool // decide, and delete nothing
}

// ExpireBackups decides which backups stay, the newest first within each volume
// and target, and begins to delete the others. What others were made from goes
// too: those stay whole. Only backups that are available are looked at. With an
// error, the operations returned have begun all the same.
func (a *Agent) ExpireBackups(ctx context.Context, e Expiry) ([]Decision, []catalog.Operation, error) {
	if err := e.Keep.check(); err != nil {
		return nil, nil, err
	}
	lines, err := a.linesOf(ctx, e)
	if err != nil {
		return nil, nil, err
	}
	var decisions []Decision
	for _, line := range lines {
		decisions = append(decisions, e.Keep.decide(line)...)
	}
	if e.DryRun {
		return decisions, nil, nil
	}
	var begun []catalog.Operation
	for _, d := range decisions {
		if d.Keep() {
			continue
		}
		op, err := a.DeleteBackup(ctx, d.Backup.ID.String(), true)
		if err != nil {
			return decisions, begun, err
		}
		begun = append(begun, op)
	}
	return decisions, begun, nil
}

// rules are the parts of a retention with what they go by: two times with the
// same period count once.
func (r Retention) rules() []rule {
	return []rule{
		{"last", r.Last, nil},
		{"hourly", r.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15h") }},
		{"daily", r.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{"weekly", r.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", r.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}

type rule struct {
	name   string
	keep   int
	period func(time.Time) string // nil: each time is one of its own
}

func (r Retention) check() error {
	some := false
	for _, rule := range r.rules() {
		if rule.keep < 0 {
			return fail(Invalid, "keep %s: %d backups cannot be kept: 0 or more", rule.name, rule.keep)
		}
		some = some || rule.keep > 0
	}
	if !some {
		return fail(Invalid, "nothing would be kept: say what to keep, such as --keep-daily 7")
	}
	return nil
}

// decide says what becomes of backups of one volume in one target, the newest
// first.
func (r Retention) decide(line []BackupView) []Decision {
	decisions := make([]Decision, len(line))
	for i, b := range line {
		decisions[i].Backup = b
	}
	for i, b := range line {
		if b.Protected {
			decisions[i].Reasons = []string{"protected"}
		}
	}
	for _, rule := range r.rules() {
		last, kept := "", 0
		for i, b := range line {
			if kept == rule.keep {
				break
			}
			if b.Protected {
				continue
			}
			if rule.period == nil {
				kept++
				decisions[i].Reasons = append(decisions[i].Reasons, rule.name)
				continue
			}
			if period := rule.period(b.DataTimestamp.UTC()); period != last {
				last = period
				kept++
				decisions[i].Reasons = append(decisions[i].Reasons, rule.name+" "+period)
			}
		}
	}
	return decisions
}

// linesOf returns the backups to decide on, by volume and target.
func (a *Agent) linesOf(ctx context.Context, e Expiry) ([][]BackupView, error) {
	views, err := a.Backups(ctx)
	if err != nil {
		return nil, err
	}
	views = slices.DeleteFunc(views, func(b BackupView) bool { return b.Status != catalog.Available })
	if e.Target != "" {
		t, err := a.Target(ctx, e.Target)
		if err != nil {
			return nil, err
		}
		views = slices.DeleteFunc(views, func(b BackupView) bool { return b.TargetID != t.ID })
	}
	if e.Volume != "" {
		volume, err := a.backedUpVolume(ctx, e.Volume, views)
		if err != nil {
			return nil, err
		}
		views = slices.DeleteFunc(views, func(b BackupView) bool { return b.VolumeID != volume })
	}
	slices.SortStableFunc(views, func(x, y BackupView) int {
		switch {
		case newer(x.Backup, y.Backup):
			return -1
		case newer(y.Backup, x.Backup):
			return 1
		}
		return 0
	})
	type line struct {
		volume, target layers.ID
		side           string
	}
	index := map[line]int{}
	var lines [][]BackupView
	for _, b := range views {
		at, is := index[line{b.VolumeID, b.TargetID, b.side()}]
		if !is {
			at = len(lines)
			index[line{b.VolumeID, b.TargetID, b.side()}] = at
			lines = append(lines, nil)
		}
		lines[at] = append(lines[at], b)
	}
	return lines, nil
}

// backedUpVolume finds a volume by its name or id, here or among the backups.
func (a *Agent) backedUpVolume(ctx context.Context, ref string, backups []BackupView) (layers.ID, error) {
	record, _, err := a.findVolume(ref)
	if err == nil || ReasonOf(err) != NotFound {
		return record.ID, err
	}
	known := map[layers.ID]named{}
	for _, b := range slices.Backward(backups) {
		known[b.VolumeID] = named{b.VolumeID, b.VolumeName, "backed up in target " + b.TargetName}
	}
	var all []named
	for _, n := range known {
		all = append(all, n)
	}
	n, err := resolve("volume", ref, all, func(n named) named { return n })
	return n.id, err
}
