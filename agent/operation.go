package agent

import (
	"context"
	"iter"

	"varve/catalog"
	"varve/layers"
)

// Operations returns the running and the latest ended operations, newest
// first.
func (a *Agent) Operations(ctx context.Context) ([]catalog.Operation, error) {
	return nil, fail(Internal, "not built yet")
}

// Operation returns one operation as it stands.
func (a *Agent) Operation(ctx context.Context, id layers.ID) (catalog.Operation, error) {
	return catalog.Operation{}, fail(Internal, "not built yet")
}

// WatchOperation yields the operation as it stands and again after changes,
// the last time when it has ended. It ends early when ctx does, and yields
// nothing if there is no such operation.
func (a *Agent) WatchOperation(ctx context.Context, id layers.ID) iter.Seq[catalog.Operation] {
	return func(func(catalog.Operation) bool) {}
}

// CancelOperation asks a running operation to stop and returns when it has.
func (a *Agent) CancelOperation(ctx context.Context, id layers.ID) error {
	return fail(Internal, "not built yet")
}
