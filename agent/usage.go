package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"varve/agent/object"
	"varve/agent/repo"
)

// uniqueTimeout bounds how long somebody waits who only looks at a backup.
const uniqueTimeout = 30 * time.Second

// A TargetUsage says what a target's repository takes.
type TargetUsage = repo.Usage

// TargetUsage looks through a whole target, which takes a while.
func (a *Agent) TargetUsage(ctx context.Context, ref string) (u TargetUsage, err error) {
	t, err := a.Target(ctx, ref)
	if err != nil {
		return u, err
	}
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return u, err
	}
	defer release()
	u, err = r.Usage(object.WithClass(ctx, object.Upkeep))
	if err != nil {
		return u, targetError(t, "look through", err)
	}
	return u, nil
}

// UniqueTo returns how much would be freed in a backup's target if it alone
// were deleted, and that were pruned: objects, and their bytes.
func (a *Agent) UniqueTo(ctx context.Context, ref string) (objects, bytes int64, err error) {
	b, t, release, err := a.wholeBackup(ctx, ref)
	if err != nil {
		return 0, 0, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, uniqueTimeout)
	defer cancel()
	r, done, err := a.useTarget(ctx, t)
	if err != nil {
		return 0, 0, err
	}
	defer done()
	only, err := r.Unique(ctx, b.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fail(NotFound, "backup %s is not in target %s any more: sync the target", b.Name, t.Name)
	}
	if err != nil {
		return 0, 0, targetError(t, "look through", err)
	}
	return only.Objects, only.Bytes, nil
}
