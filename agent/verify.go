package agent

import (
	"context"
	"errors"
	"fmt"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
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
	if err != nil {
		for _, damage := range report.Damage[:min(len(report.Damage), maxDamage)] {
			err = errors.Join(err, damage)
		}
		return targetError(t, "verify backup "+b.ID.String()+" in", err)
	}
	op.note(fmt.Sprintf("the backup is whole; of its data %d frames with %d bytes were read and checked", report.Frames, report.Bytes))
	return nil
}

// maxDamage is how many damages an operation's error tells.
const maxDamage = 10
