package agent

import (
	"context"
	"sync"
	"time"

	"varve/catalog"
)

// pollTargets reads the list of every target now and then at each interval,
// until ctx ends: behaviour C2. A target that hangs holds up no other.
func (a *Agent) pollTargets(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		a.pollAll(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) pollAll(ctx context.Context) {
	targets, err := list(a, catalog.Targets)
	if err != nil {
		a.log.Error("the targets cannot be asked for their backups", "error", err)
		return
	}
	var polls sync.WaitGroup
	for _, t := range targets {
		polls.Go(func() { a.poll(ctx, t) })
	}
	polls.Wait()
}

// A poll is the reading of one target's list. It ends when the target is to be
// removed.
type poll struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

func (a *Agent) poll(ctx context.Context, t catalog.Target) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &poll{cancel, make(chan struct{})}
	m := a.targetOf(t)
	a.mu.Lock()
	m.poll = p
	a.mu.Unlock()
	err := a.sync(ctx, t, newRoots)
	a.mu.Lock()
	m.poll = nil
	a.mu.Unlock()
	close(p.ended)
	if ctx.Err() == nil {
		a.notePoll(t, m, err)
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
