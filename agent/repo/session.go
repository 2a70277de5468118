package repo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"varve/layers"
)

const (
	// sessionLate is how long a backup may take that shows no session.
	sessionLate    = 5 * time.Minute
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
// on what it builds: docs/format.md 2.9. It is begun once the backup takes
// longer than sessionLate: until then its packs are younger than what pruning
// touches, and its parent was asked about. It is renewed under the next number.
type session struct {
	repo       *Repo
	job        *Job
	ledger     *ledger
	root       rootName
	parentRoot string   // name; empty without a parent
	footing    *footing // whose parent is not deleted when the session begins
	listing    *listing // of the volume, from before the backup

	begin   chan struct{} // of one place: whoever begins or closes it is in there
	tried   bool          // under begin: it was begun, or never will be
	err     error         // of the first write; under begin
	stop    context.CancelFunc
	done    chan struct{}
	mu      sync.Mutex // all below
	first   int64      // number of the first one that this session wrote
	next    int64
	begun   bool
	lost    bool   // there was a gap between two renewals in which pruning may have taken it for dead
	stored  bool   // something is stored that has to be shown
	renewed moment // before the newest was written; before the first pack was, as long as there is none
}

// newSession returns the session of a backup. next is the number that it goes on
// with, of an earlier try.
func newSession(w *writer, l *listing, parentRoot string, next int64) *session {
	return &session{
		repo: w.repo, job: w.job, ledger: w.ledger, root: w.root.name, parentRoot: parentRoot,
		footing: w.footing, listing: l, next: next, begin: make(chan struct{}, 1),
	}
}

// stores tells that a pack is about to be written.
func (s *session) stores() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stored {
		s.stored, s.renewed = true, s.repo.moment()
	}
}

// start writes the session if it was not yet, and keeps it alive until close is
// called.
func (s *session) start(ctx context.Context) error {
	s.begin <- struct{}{}
	defer func() { <-s.begin }()
	if s.tried {
		return s.err
	}
	s.tried = true
	if s.err = s.sweep(ctx); s.err != nil {
		return s.err
	}
	if s.err = s.footing.hold(ctx, s); s.err != nil {
		return s.err
	}
	if s.err = s.write(ctx); s.err != nil {
		return s.err
	}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx)) // the copy ends before the commit does
	s.done = make(chan struct{})
	go s.renew(ctx)
	return nil
}

// startLate starts the session once the backup takes long, unless it is over.
func (s *session) startLate(ctx context.Context, over <-chan struct{}) error {
	late := time.NewTimer(sessionLate)
	defer late.Stop()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return s.start(ctx)
	}
}

func (s *session) write(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	now := s.repo.moment()
	n := s.number()
	f := make(fields)
	f.setID(bodyBackup, s.job.ID)
	f.setID(bodyVolume, s.job.Volume)
	f.setID(bodyParent, s.job.Parent)
	f.setText(bodyParentRoot, s.parentRoot)
	f.setTime(bodyTime, now.at)
	f.setNumber(bodyNumber, n)
	f.setText(bodyRoot, s.root.String())
	f.setText(bodyHost, hostName())
	if err := s.ledger.session(n); err != nil {
		return err
	}
	if err := s.repo.store.Put(ctx, sessionName(s.job.ID, n), s.repo.sealBody(kindSession, s.job.ID, f)); err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun || s.repo.passed(now) < s.repo.passed(s.renewed) { // else somebody renewed it meanwhile
		s.renewed = now
	}
	s.begun, s.stored = true, true
	return nil
}

// number takes the next number, whatever becomes of the object: no name is
// written twice.
func (s *session) number() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return s.next - 1
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

// check says whether what the backup stored and builds on is still protected.
func (s *session) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored && s.repo.passed(s.renewed) > sessionGrace {
		s.lost = true
	}
	if s.lost {
		return fmt.Errorf("%w since %s; make the backup again", ErrStale, s.renewed.at.Format(time.RFC3339))
	}
	return nil
}

// aged reports whether the session was not renewed for so long that the host
// must have stood still, or the store: the root may be under way for hours too,
// and both together must not outlast what pruning waits.
func (s *session) aged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored && s.repo.passed(s.renewed) > 2*sessionRenewal
}

// refresh renews an aged session, and begins one that should be there by now.
func (s *session) refresh(ctx context.Context) error {
	if err := s.check(); err != nil || !s.aged() {
		return err
	}
	if s.leans() {
		return s.write(ctx)
	}
	return s.start(ctx)
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
	s.mu.Lock()
	begun, first := s.begun && !s.lost, s.first
	s.mu.Unlock()
	if !begun {
		return nil // what it would protect is too young
	}
	there, err := s.repo.exists(ctx, sessionName(s.job.ID, first))
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

// sweep finds the number that the session begins with, and removes the sessions
// of backups of this volume that were committed more than sessionAfter ago by
// the store's clock.
func (s *session) sweep(ctx context.Context) error {
	next, err := s.repo.sweepSessions(ctx, s.listing, s.job.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listing = nil
	s.next = max(s.next, next)
	s.first = s.next
	return err
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
