package agent

import (
	"context"
	"errors"
	"fmt"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// VerifyBackup begins to check that a backup is whole in its target; deep
// reads all its data.
func (a *Agent) VerifyBackup(ctx context.Context, ref string, deep bool) (catalog.Operation, error) {
	b, t, release, err := a.wholeBackup(ctx, ref)
	if err != nil {
		return catalog.Operation{}, err
	}
	return a.start(job{
		kind:    "backup verify",
		subject: b.ID,
		begin:   func(*catalog.Tx) error { return nil },
		work:    func(ctx context.Context, op *operation) error { return a.verify(ctx, op, t, b, deep) },
		settle:  func(*catalog.Tx, error) error { return nil },
		release: release,
	})
}

// verify checks a backup. Its error tells the first damages that were found.
func (a *Agent) verify(ctx context.Context, op *operation, t catalog.Target, b BackupView, deep bool) error {
	leave, err := a.place(ctx)
	if err != nil {
		return err
	}
	defer leave()
	ctx = object.WithClass(ctx, object.Upkeep)
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	o := repo.VerifyOptions{Level: repo.Map, Progress: op.progress}
	if deep {
		o.Level = repo.Deep
	}
	report, err := r.Verify(ctx, b.ID, o)
	if marked := a.markVerified(op, t.ID, b.ID, o.Level, report, err); marked != nil {
		return errors.Join(err, marked)
	}
	if err != nil {
		for _, damage := range report.Damage[:min(len(report.Damage), maxDamage)] {
			err = errors.Join(err, damage)
		}
		return targetError(t, "verify backup "+b.ID.String()+" in", err)
	}
	op.note(WholeNote(o.Level, report))
	return nil
}

// WholeNote tells a person what a verification has looked at that found a backup
// whole.
func WholeNote(level repo.Level, report repo.Report) string {
	if level < repo.Deep {
		return fmt.Sprintf("the backup is whole: its map is right, and the %d objects with its data are there; --deep reads the data too", report.Packs)
	}
	return fmt.Sprintf("the backup is whole: all its data, %d frames with %d bytes in %d objects, was read and checked", report.Frames, report.Bytes, report.Packs)
}

// markVerified writes into the backup's record what a verification of it found.
// Damaged packs count no more as read.
func (a *Agent) markVerified(op *operation, target, backup layers.ID, level repo.Level, report repo.Report, err error) error {
	if err != nil && len(report.Damage) == 0 {
		return nil
	}
	var findings []catalog.Finding
	var packs []string
	for _, damage := range report.Damage[:min(len(report.Damage), maxFindings)] {
		f := catalog.Finding{Found: shorten(DamageText(damage))}
		var d *repo.DamageError
		if errors.As(damage, &d) {
			f.File, f.Offset = d.Object, d.Offset
			packs = append(packs, d.Object)
		}
		findings = append(findings, f)
	}
	op.change(func(r *catalog.Operation) { r.Findings, r.Damage = findings, int64(len(report.Damage)) })
	return a.update(func(tx *catalog.Tx) error {
		err := change(tx, catalog.Backups, backup, func(b *catalog.Backup) {
			if len(report.Damage) > 0 {
				b.Damage, b.DamageMode = shorten(fmt.Sprintf("%d places: %v", len(report.Damage), report.Damage[0])), level.String()
			} else if covers(level.String(), b.DamageMode) {
				b.Damage, b.DamageMode = "", ""
			}
		})
		return errors.Join(err, tx.DropReadings(target, packs))
	})
}

// maxDamage is how many damages an operation's error tells.
const maxDamage = 10
