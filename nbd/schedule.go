package nbd

import (
	"sync"
	"sync/atomic"
)

// The bounds of a connection's workers.
const (
	maxWorkers = 16  // goroutines, started when they are first needed
	maxTasks   = 256 // requests given to them and not finished
)

// A task is a request that a worker serves. Tasks that touch the same bytes,
// where one of them writes, run in the order in which they came: the protocol
// leaves that order open, but there are clients that count on it.
type task struct {
	request
	payload *buffer // of a WRITE; the worker gives it back
	charge  int64   // acquired from the outbox, bytes

	waits  int     // unfinished tasks that came earlier and conflict
	behind []*task // tasks that wait for this one
	slot   int     // index in schedule.active
}

// conflicts says whether the order of r and s matters.
func (r *request) conflicts(s *request) bool {
	return (r.changes() || s.changes()) && r.off < s.off+s.n && s.off < r.off+r.n
}

// A schedule runs the tasks of one connection. Its reader alone calls add,
// mustWait and close.
type schedule struct {
	run func(*task) // serves a task and hands in the reply

	unfinished atomic.Int32 // tasks in active, for the reader's quick look

	mu      sync.Mutex
	work    sync.Cond // ready or closed have changed, for workers
	changed sync.Cond // active has shrunk
	active  []*task   // added and not finished, in no order
	ready   []*task   // those that wait for none; a queue from head on
	head    int
	spare   []*task // finished, to be used again
	idle    int     // workers that wait
	workers int
	closed  bool
	ended   sync.WaitGroup
}

func (s *schedule) init(run func(*task)) {
	s.run = run
	s.work.L, s.changed.L = &s.mu, &s.mu
}

// busy says whether tasks are unfinished.
func (s *schedule) busy() bool { return s.unfinished.Load() > 0 }

// full says whether add would wait now.
func (s *schedule) full() bool { return s.unfinished.Load() >= maxTasks }

// mustWait says whether r conflicts with an unfinished task, so that it has to
// become one as well.
func (s *schedule) mustWait(r *request) bool {
	if !s.busy() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.active {
		if t.conflicts(r) {
			return true
		}
	}
	return false
}

// add gives r to the workers. It waits while they have maxTasks.
func (s *schedule) add(r *request, payload *buffer, charge int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.active) >= maxTasks {
		s.changed.Wait()
	}
	t := s.newTask()
	t.request, t.payload, t.charge = *r, payload, charge
	for _, earlier := range s.active {
		if earlier.conflicts(r) {
			earlier.behind = append(earlier.behind, t)
			t.waits++
		}
	}
	t.slot = len(s.active)
	s.active = append(s.active, t)
	s.unfinished.Add(1)
	if t.waits == 0 {
		s.start(t)
	}
}

func (s *schedule) newTask() *task {
	n := len(s.spare)
	if n == 0 {
		return &task{}
	}
	t := s.spare[n-1]
	s.spare = s.spare[:n-1]
	return t
}

// start queues t for a worker that waits, or a new one, or the next free one.
func (s *schedule) start(t *task) {
	if s.head > 0 && len(s.ready) == cap(s.ready) {
		n := copy(s.ready, s.ready[s.head:])
		s.ready, s.head = s.ready[:n], 0
	}
	s.ready = append(s.ready, t)
	switch {
	case s.idle > 0:
		s.work.Signal()
	case s.workers < maxWorkers:
		s.workers++
		s.ended.Go(s.worker)
	}
}

func (s *schedule) worker() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.head == len(s.ready) {
			if s.closed {
				return
			}
			s.idle++
			s.work.Wait()
			s.idle--
		}
		t := s.ready[s.head]
		s.head++
		s.mu.Unlock()
		s.run(t)
		s.mu.Lock()
		s.finish(t)
	}
}

// finish takes t out of active and starts those that waited for it alone.
func (s *schedule) finish(t *task) {
	last := len(s.active) - 1
	s.active[t.slot] = s.active[last]
	s.active[t.slot].slot = t.slot
	s.active[last] = nil
	s.active = s.active[:last]
	s.unfinished.Add(-1)
	for i, later := range t.behind {
		t.behind[i] = nil
		if later.waits--; later.waits == 0 {
			s.start(later)
		}
	}
	*t = task{behind: t.behind[:0]}
	s.spare = append(s.spare, t)
	s.changed.Broadcast()
}

// drain waits until no task is unfinished.
func (s *schedule) drain() {
	s.mu.Lock()
	for len(s.active) > 0 {
		s.changed.Wait()
	}
	s.mu.Unlock()
}

// close waits for the tasks and ends the workers.
func (s *schedule) close() {
	s.drain()
	s.mu.Lock()
	s.closed = true
	s.work.Broadcast()
	s.mu.Unlock()
	s.ended.Wait()
}
