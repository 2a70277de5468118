package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
)

type newPruneBody struct {
	Prune NewPrune `json:"prune"`
}

func (s *Server) addPrune(h huma.API) {
	huma.Post(h, "/v1/targets/{target}/prune", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Body   newPruneBody
	}) (*answer[operationBody], error) {
		n := in.Body.Prune
		below := agent.RepackBelow
		if n.RepackBelow != nil {
			below = *n.RepackBelow
		}
		return begun(s.config.Agent.PruneTarget(ctx, in.Target, agent.Prune{
			DryRun: n.DryRun, Grace: time.Duration(n.GraceSeconds * float64(time.Second)), RepackBelow: below,
		}))
	}, accepted)
}

// PruneTarget begins to free the space of what was deleted in a target.
func (c *Client) PruneTarget(ctx context.Context, name string, n NewPrune) (Operation, error) {
	out, err := call[operationBody](ctx, c, http.MethodPost, "targets", "target", name, "prune", newPruneBody{n})
	return out.Operation, err
}

func pruned(p *catalog.Pruned) *Pruned {
	if p == nil {
		return nil
	}
	shown := PrunedBy(*p)
	return &shown
}

// PrunedBy is what a pruning did as the API shows it.
func PrunedBy(p catalog.Pruned) Pruned {
	kept := p.Kept
	if kept == nil {
		kept = []string{}
	}
	return Pruned{
		DryRun:      p.DryRun,
		PackObjects: p.Packs.Objects, PackBytes: p.Packs.Bytes,
		FreedObjects: p.Freed.Objects, FreedBytes: p.Freed.Bytes,
		CondemnedObjects: p.Condemned.Objects, CondemnedBytes: p.Condemned.Bytes,
		YoungObjects: p.Young.Objects, YoungBytes: p.Young.Bytes,
		RepackedObjects: p.Repacked.Objects, RepackedBytes: p.Repacked.Bytes,
		RewrittenObjects: p.Rewritten.Objects, RewrittenBytes: p.Rewritten.Bytes,
		Backups: p.Backups, WaitingBackups: p.WaitingBackups, Retained: p.Retained, Kept: kept,
	}
}
