package repo

import (
	"context"
	"sync"
	"time"

	"varve/agent/object"
)

// A pace is how fast something goes on.
type pace struct {
	rate int64 // bytes a second

	mu   sync.Mutex
	next time.Time // when the next bytes may begin
}

// wait returns when n bytes may be read: those before them were at the rate.
func (p *pace) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	begin := time.Now()
	if p.next.After(begin) {
		begin = p.next
	}
	p.next = begin.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(begin))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A pacedStore reads at a pace.
type pacedStore struct {
	object.Store
	pace pace
}

// Get reads as the Store does, later.
func (s *pacedStore) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := s.pace.wait(ctx, len(p)); err != nil {
		return 0, err
	}
	return s.Store.Get(ctx, name, p, off)
}

// over is the repository read through another store; what it knows is shared.
func (r *Repo) over(s object.Store) *Repo {
	other := &Repo{
		store: s, head: r.head, keys: r.keys, index: r.index, claims: r.claims, captions: r.captions, cache: r.cache, reach: r.reach, moves: r.moves, fetches: r.fetches, life: r.life, end: r.end,
		now: r.now, cost: r.cost, mergePacks: r.mergePacks, packTarget: r.packTarget, rootBudget: r.rootBudget, splitLeaf: r.splitLeaf,
	}
	other.opened.Store(r.opened.Load())
	return other
}
