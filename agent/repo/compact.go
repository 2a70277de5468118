package repo

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
)

const (
	// rootBudget is what the spans of a root may take for each TiB of the
	// volume, and at least: with the summary a root stays below 48 KiB.
	rootBudget = 44 << 10
	tebibyte   = 1 << 40

	// What a leaf and a pack take in a root at most, about, in bytes.
	leafCost = 6
	packCost = 26
)

// compact merges leaves of spans that this backup did not touch, if the root
// would outgrow its budget: a volume that is written here today and there
// tomorrow ends with a pack of leaves for each span and day. It merges down to
// three quarters, so that it does not come up at each backup.
func (w *writer) compact(ctx context.Context) error {
	if w.parent == nil {
		return nil
	}
	budget := float64(w.repo.rootBudget) * max(1, float64(w.job.Source.Size())/tebibyte)
	touched := make(map[int64]bool, len(w.updates))
	for _, u := range w.updates {
		touched[u.first] = true
	}
	uses := make(map[*leafPack]int)
	for _, r := range w.parent.rows {
		for _, leaf := range r.leaves {
			uses[leaf.pack]++
		}
	}
	total := float64(packCost * len(uses))
	type candidate struct {
		row  row
		cost float64
	}
	var candidates []candidate
	for _, r := range w.parent.rows {
		cost := 0.0
		for _, leaf := range r.leaves {
			total += leafCost
			cost += leafCost + packCost/float64(uses[leaf.pack])
		}
		if !touched[r.first] {
			candidates = append(candidates, candidate{r, cost})
		}
	}
	if total <= budget {
		return nil
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.cost, a.cost) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mergesMax)
	for _, c := range candidates {
		if total -= c.cost - leafCost; total < budget*3/4 || c.cost <= leafCost+1 {
			break
		}
		g.Go(func() error {
			merged, err := w.repo.readRow(ctx, w.job.Volume, c.row)
			if err != nil {
				return damagedParent(err)
			}
			w.addBase(merged)
			return nil
		})
	}
	return g.Wait()
}
