package agent

import (
	"context"

	"varve/catalog"
)

// NewTarget says what target to add. Exactly one of Passphrase and
// NoEncryption is set.
type NewTarget struct {
	Name         string
	URL          string // scheme://…, without credentials
	Passphrase   string
	NoEncryption bool
	Env          map[string]string // the target's credentials, by the names of the usual environment
}

// AddTarget opens the repository at the URL, or creates it if the place is
// empty, and remembers it.
func (a *Agent) AddTarget(ctx context.Context, n NewTarget) (catalog.Target, error) {
	return catalog.Target{}, fail(Internal, "not built yet")
}

// Targets returns every target, oldest first.
func (a *Agent) Targets(ctx context.Context) ([]catalog.Target, error) {
	return nil, fail(Internal, "not built yet")
}

// Target returns the target that ref, a name or an id, means.
func (a *Agent) Target(ctx context.Context, ref string) (catalog.Target, error) {
	return catalog.Target{}, fail(Internal, "not built yet")
}

// RemoveTarget forgets a target and its secrets. The backups stay in it.
func (a *Agent) RemoveTarget(ctx context.Context, ref string) error {
	return fail(Internal, "not built yet")
}

// SyncTarget reads the target's list of backups into the catalog.
func (a *Agent) SyncTarget(ctx context.Context, ref string) error {
	return fail(Internal, "not built yet")
}
