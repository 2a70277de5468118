package agent

import (
	"context"
	"sync"
	"time"

	"varve/catalog"
)

// pollTargets reads the list of every target now and then at each interval,
// until ctx ends: behaviour C2. A target that hangs holds up no other, and is
// not asked again before it has answered.
func (a *Agent) pollTargets(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var polls sync.WaitGroup
	defer polls.Wait()
	for {
		targets, err := list(a, catalog.Targets)
		if err != nil {
			a.log.Error("the targets cannot be asked for their backups", "error", err)
		}
		for _, t := range targets {
			if p := a.beginPoll(ctx, t); p != nil {
				polls.Go(func() { a.poll(p, t) })
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// A poll is the reading of one target's list. It ends when the target is to be
// removed.
type poll struct {
	target *target
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
}

// beginPoll returns nil if the target is being polled already.
func (a *Agent) beginPoll(ctx context.Context, t catalog.Target) *poll {
	m := a.targetOf(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.poll != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	m.poll = &poll{m, ctx, cancel, make(chan struct{})}
	return m.poll
}

func (a *Agent) poll(p *poll, t catalog.Target) {
	defer p.cancel()
	err := a.sync(p.ctx, t, newRoots)
	a.mu.Lock()
	p.target.poll = nil
	a.mu.Unlock()
	close(p.ended)
	if p.ctx.Err() == nil {
		a.notePoll(t, p.target, err)
	}
}

// endPoll ends the poll of a target, if one is under way.
func (a *Agent) endPoll(m *target) {
	a.mu.Lock()
	p := m.poll
	a.mu.Unlock()
	if p != nil {
		p.cancel()
		<-p.ended
	}
}

// notePoll logs that a target ceases to answer, or answers again: once, and not
// at each interval.
func (a *Agent) notePoll(t catalog.Target, m *target, err error) {
	a.mu.Lock()
	was := m.away
	m.away = err != nil
	a.mu.Unlock()
	switch {
	case err != nil && !was:
		a.log.Warn("the list of a target's backups cannot be read; it is asked again at each poll", "target", t.Name, "error", err)
	case err == nil && was:
		a.log.Info("a target answers again", "target", t.Name)
	}
}
