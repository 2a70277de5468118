package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
)

const kindPrune = "target prune"

// RepackBelow is the percentage that Prune has unless somebody says otherwise.
const RepackBelow = repo.RepackBelow

// A Prune says how to prune a target. It is also the checkpoint of the
// operation: what was condemned and what is gone is in the target.
type Prune struct {
	DryRun bool          // only say what would go
	Grace  time.Duration // 0: repo.PruneGrace; a shorter one is safe only while no backup is made

	// RepackBelow is the percentage of a pack below which what is needed of it is
	// copied into a new one. 0: nothing is copied.
	RepackBelow int
}

// PruneTarget begins to free the space of what was deleted in a target, and of
// what crashed backups left in it. Backups go on meanwhile.
func (a *Agent) PruneTarget(ctx context.Context, ref string, p Prune) (catalog.Operation, error) {
	if p.Grace < 0 {
		return catalog.Operation{}, fail(Invalid, "prune target %s: a grace of %v: it cannot be negative", ref, p.Grace)
	}
	if p.RepackBelow < 0 || p.RepackBelow > 100 {
		return catalog.Operation{}, fail(Invalid, "prune target %s: repacking below %d %%: it must be 0 to 100", ref, p.RepackBelow)
	}
	t, err := a.Target(ctx, ref)
	if err != nil {
		return catalog.Operation{}, err
	}
	j, err := a.pruning(t, p)
	if err != nil {
		return catalog.Operation{}, err
	}
	return a.start(j)
}

func (a *Agent) pruning(t catalog.Target, p Prune) (job, error) {
	release, err := a.holdTarget(t)
	if err != nil {
		return job{}, err
	}
	return job{
		kind:    kindPrune,
		subject: t.ID,
		state:   p,
		begin:   func(*catalog.Tx) error { return nil },
		work: func(ctx context.Context, op *operation) error {
			if p.DryRun { // somebody waits for what it says
				return a.prune(ctx, op, t, p)
			}
			next := p
			return a.insist(ctx, op, t, func() error {
				now := next
				next.Grace = laterGrace(p.Grace)
				return a.prune(ctx, op, t, now)
			})
		},
		settle:  func(*catalog.Tx, error) error { return nil },
		release: release,
	}, nil
}

// laterGrace is the grace of a pruning that goes on at another time than it was
// asked for, when its target or the daemon is back. Who asked for a short one
// promised that no backup is made, for then and not for now.
func laterGrace(asked time.Duration) time.Duration {
	if asked == 0 {
		return 0
	}
	return max(asked, repo.PruneGrace)
}

// resumePrune makes the job of a pruning again that was cut off.
func (a *Agent) resumePrune(op catalog.Operation, state []byte) (job, error) {
	var p Prune
	if err := json.Unmarshal(state, &p); err != nil {
		return job{}, fmt.Errorf("read its checkpoint: %w", err)
	}
	p.Grace = laterGrace(p.Grace)
	t, err := a.targetRecord(op.Subject)
	if err != nil {
		return job{}, err
	}
	return a.pruning(t, p)
}

func (a *Agent) prune(ctx context.Context, op *operation, t catalog.Target, p Prune) error {
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
	report, err := r.Prune(ctx, repo.PruneOptions{DryRun: p.DryRun, Grace: p.Grace, RepackBelow: p.RepackBelow, Progress: op.progress})
	if err != nil {
		return targetError(t, "prune", err)
	}
	pruned := Pruned(report, p.DryRun)
	op.change(func(r *catalog.Operation) { r.Pruned = &pruned })
	return nil
}

// Pruned is the record of what a run of Prune did.
func Pruned(r repo.PruneReport, dryRun bool) catalog.Pruned {
	p := catalog.Pruned{
		DryRun: dryRun, Packs: catalog.Amount(r.Packs), Freed: catalog.Amount(r.Freed),
		Condemned: catalog.Amount(r.Condemned), Young: catalog.Amount(r.Young),
		Repacked: catalog.Amount(r.Repacked), Rewritten: catalog.Amount(r.Rewritten),
		Backups: int64(r.Backups), WaitingBackups: int64(r.Waiting), Retained: r.Retained,
	}
	for _, err := range r.Kept[:min(len(r.Kept), maxDamage)] {
		p.Kept = append(p.Kept, shorten(err.Error()))
	}
	return p
}
