package agent

import (
	"context"
	"maps"
	"slices"

	"varve/agent/repo"
)

// A TargetDescription is what a target's repository says about itself, and
// what the daemon keeps to open it, without any secret.
type TargetDescription struct {
	repo.Description
	Keys        []KeySlot // none without encryption
	Credentials []string  // names of the variables that are kept to log in with
}

// DescribeTarget asks a target about itself, for a few seconds at most.
func (a *Agent) DescribeTarget(ctx context.Context, ref string) (d TargetDescription, err error) {
	t, err := a.Target(ctx, ref)
	if err != nil {
		return d, err
	}
	secret, err := a.readSecrets(t.ID)
	if err != nil {
		return d, err
	}
	d.Credentials = slices.Sorted(maps.Keys(secret.Env))
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return d, err
	}
	defer release()
	d.Description = r.Describe()
	if !r.Encrypted() {
		return d, nil
	}
	if d.Keys, err = a.readKeys(ctx, r, t); err != nil {
		return d, keyError(t, "list the keys of", err)
	}
	return d, nil
}
