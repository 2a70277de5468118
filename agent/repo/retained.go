package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/agent/object"
)

// remove deletes objects. Those that the store itself retains stay, and are
// noted: a later run comes back to them.
func (p *prune) remove(ctx context.Context, names []string) error {
	if p.options.DryRun {
		return nil
	}
	for batch := range slices.Chunk(names, deleteBatch) {
		err := p.repo.store.Delete(ctx, batch...)
		var held *object.RetainedError
		if errors.As(err, &held) {
			p.retain(held)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// retain notes what the store retains. The reason is told once.
func (p *prune) retain(held *object.RetainedError) {
	if p.retained == nil {
		p.retained = make(map[string]bool)
		p.keep(fmt.Errorf("%w; what is retained goes with a later prune", held))
	}
	for _, name := range held.Names {
		p.retained[name] = true
	}
	p.report.Retained += int64(len(held.Names))
}

// unfree takes what was to go, and is retained, from what is freed.
func (p *prune) unfree(name string, size int64) {
	if p.retained[name] {
		p.report.Freed.Objects--
		p.report.Freed.Bytes -= size
	}
}
