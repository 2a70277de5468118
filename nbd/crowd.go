package nbd

import (
	"context"
	"sync"
	"time"
)

// admit counts a new session in, unless the server is full or shuts down. A
// server is not full as long as somebody is in its handshake: the one that has
// been there longest is closed then. A handshake takes milliseconds, so it is
// most likely somebody who never comes to the point, and hundreds of those must
// not lock out the others for the thirty seconds that each of them has.
func (s *Server) admit(t *session, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.sessions)-s.leaving >= s.maxConnections() {
		old := s.oldestStranger()
		if old == nil || s.leaving >= s.maxConnections() {
			return false
		}
		old.left = true
		s.leaving++
		s.sessions[old]()
	}
	s.sessions[t] = cancel
	return true
}

// oldestStranger is the session that has been in its handshake longest; nil if
// none is in one. The caller holds mu.
func (s *Server) oldestStranger() (oldest *session) {
	for t := range s.sessions {
		if !t.left && !t.known.Load() && (oldest == nil || t.began.Before(oldest.began)) {
			oldest = t
		}
	}
	return oldest
}

// forget counts a session out that has ended.
func (s *Server) forget(t *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, t)
	if t.left {
		s.leaving--
	}
	s.ended.Broadcast()
}

const (
	floodBurst = 20          // lines at once
	floodEvery = time.Second // and one more in that time
)

// A flood bounds the lines in the log that strangers can cause. The zero value
// is ready.
type flood struct {
	mu      sync.Mutex
	spent   int       // of floodBurst
	since   time.Time // up to when spent was reduced
	leftOut int       // lines since the last one
}

// pass says whether a line may be logged now, and if so how many were left out
// before it.
func (f *flood) pass(now time.Time) (ok bool, leftOut int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	back := int(now.Sub(f.since) / floodEvery)
	if back >= f.spent {
		f.spent, f.since = 0, now
	} else if back > 0 {
		f.spent, f.since = f.spent-back, f.since.Add(time.Duration(back)*floodEvery)
	}
	if f.spent >= floodBurst {
		f.leftOut++
		return false, 0
	}
	f.spent++
	leftOut, f.leftOut = f.leftOut, 0
	return true, leftOut
}
