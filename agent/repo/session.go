package repo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"varve/layers"
)

const (
	sessionRenewal = 10 * time.Minute
	// sessionGrace is half of the time that pruning leaves what it condemned:
	// a writer that could not renew its session for longer stops, since what
	// it builds on may be gone.
	sessionGrace = 12 * time.Hour
	// sessionDead is the age of its newest renewal, by the store's clock, from
	// which on a session is a crashed writer's: one that lives would have
	// stopped, and a listing may lag by sessionAfter.
	sessionDead = 18 * time.Hour
	// sessionAfter is how long after its root a session goes: longer than a
	// listing may lag.
	sessionAfter = time.Hour
)

// A session shows pruning on other hosts that a backup is being written, and
// on what it builds: docs/format.md 2.9. It is written before the first pack
// and renewed under the next number.
type session struct {
	repo       *Repo
	job        *Job
	ledger     *ledger
	root       rootName
	parentRoot string   // name; empty without a parent
	footing    *footing // whose parent is not deleted when the session begins
	first      int64    // number of the first one that this session wrote
	next       int64

	begin   chan struct{} // of one place: whoever begins or closes it is in there
	tried   bool          // under begin: it was begun, or never will be
	err     error         // of the first write; under begin
	stop    context.CancelFunc
	done    chan struct{}
	mu      sync.Mutex // all below
	begun   bool
	lost    bool // there was a gap between two renewals in which pruning may have taken it for dead
	renewed moment
}

// start writes the session if it was not yet, and keeps it alive until ctx
// ends or close is called.
func (s *session) start(ctx context.Context) error {
	s.begin <- struct{}{}
	defer func() { <-s.begin }()
	if s.tried {
		return s.err
	}
	s.tried = true
	if s.err = s.footing.hold(ctx, s); s.err != nil {
		return s.err
	}
	if s.err = s.write(ctx); s.err != nil {
		return s.err
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.done = make(chan struct{})
	go s.renew(ctx)
	return nil
}

func (s *session) write(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	now := s.repo.moment()
	f := make(fields)
	f.setID(bodyBackup, s.job.ID)
	f.setID(bodyVolume, s.job.Volume)
	f.setID(bodyParent, s.job.Parent)
	f.setText(bodyParentRoot, s.parentRoot)
	f.setTime(bodyTime, now.at)
	f.setNumber(bodyNumber, s.next)
	f.setText(bodyRoot, s.root.String())
	f.setText(bodyHost, hostName())
	if err := s.ledger.session(s.next); err != nil {
		return err
	}
	name := sessionName(s.job.ID, s.next)
	s.next++ // whatever becomes of this one: no name is written twice
	if err := s.repo.store.Put(ctx, name, s.repo.sealBody(kindSession, s.job.ID, f)); err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun, s.renewed = true, now
	return nil
}

func (s *session) renew(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(sessionRenewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.write(ctx) // again at the next tick; check sees how long it fails
		}
	}
}

// check says whether the session still protects what the backup builds on.
func (s *session) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun && s.repo.passed(s.renewed) > sessionGrace {
		s.lost = true
	}
	if s.lost {
		return fmt.Errorf("%w since %s; make the backup again", ErrStale, s.renewed.at.Format(time.RFC3339))
	}
	return nil
}

// leans reports whether the session keeps the parent, even one that is
// deleted by now: it was not when the session began.
func (s *session) leans() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun && !s.lost
}

// present asks for the first object of the session by name: pruning takes it
// away before it touches what it protects.
func (s *session) present(ctx context.Context) error {
	if !s.leans() {
		return nil // no pack was written yet
	}
	there, err := s.repo.exists(ctx, sessionName(s.job.ID, s.first))
	if err != nil {
		return fmt.Errorf("look for the session: %w", err)
	}
	if !there {
		return fmt.Errorf("%w for so long that pruning took it away; make the backup again", ErrStale)
	}
	return nil
}

// close ends the renewal.
func (s *session) close() {
	s.begin <- struct{}{}
	s.tried = true // one that never began does not begin any more
	<-s.begin
	if s.stop != nil {
		s.stop()
		<-s.done
	}
}

// sweepSessions removes the sessions of backups of this volume that were
// committed more than sessionAfter ago by the store's clock, and returns the
// number that the session of backup goes on with.
func (r *Repo) sweepSessions(ctx context.Context, l *listing, backup layers.ID) (next int64, err error) {
	committed := make(map[layers.ID]time.Time)
	for _, root := range l.roots {
		committed[root.name.backup] = root.modified
	}
	now := l.newest
	type found struct {
		name   string
		backup layers.ID
	}
	var sessions []found
	for info, err := range r.store.List(ctx, sessionRoot) {
		if err != nil {
			return 0, fmt.Errorf("list sessions: %w", err)
		}
		if info.Modified.After(now) {
			now = info.Modified
		}
		if id, n, ok := parseSession(info.Name); ok {
			sessions = append(sessions, found{info.Name, id})
			if id == backup {
				next = max(next, n+1)
			}
		}
	}
	var old []string
	for _, s := range sessions {
		if at, ok := committed[s.backup]; ok && !at.IsZero() && now.Sub(at) > sessionAfter {
			old = append(old, s.name)
		}
	}
	if len(old) == 0 {
		return next, nil
	}
	r.store.Delete(ctx, old...) // what stays goes with a later backup
	return next, ctx.Err()
}
