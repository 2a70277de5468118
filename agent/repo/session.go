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
	// sessionGrace is half of the time that pruning leaves an object that it
	// condemned: a writer that could not renew its session for longer stops,
	// since what it builds on may be gone.
	sessionGrace = 12 * time.Hour
	// sessionAfter is how long after its root a session goes: longer than a
	// listing may lag.
	sessionAfter = time.Hour
)

// A session shows pruning on other hosts that a backup is being written:
// docs/format.md 2.9. It is written before the first pack and renewed under
// the next number.
type session struct {
	repo       *Repo
	job        *Job
	ledger     *ledger
	root       rootName
	parentRoot string // name; empty without a parent
	next       int64

	begin   sync.Once
	err     error // of the first write
	stop    context.CancelFunc
	done    chan struct{}
	mu      sync.Mutex
	renewed time.Time
}

// start writes the session if it was not yet, and keeps it alive until ctx
// ends or close is called.
func (s *session) start(ctx context.Context) error {
	s.begin.Do(func() {
		if s.err = s.write(ctx); s.err != nil {
			return
		}
		ctx, s.stop = context.WithCancel(ctx)
		s.done = make(chan struct{})
		go s.renew(ctx)
	})
	return s.err
}

func (s *session) write(ctx context.Context) error {
	if err := s.ledger.session(s.next); err != nil {
		return err
	}
	f := make(fields)
	f.setID(bodyBackup, s.job.ID)
	f.setID(bodyVolume, s.job.Volume)
	f.setID(bodyParent, s.job.Parent)
	f.setText(bodyParentRoot, s.parentRoot)
	f.setTime(bodyTime, time.Now())
	f.setNumber(bodyNumber, s.next)
	f.setText(bodyRoot, s.root.String())
	f.setText(bodyHost, hostName())
	if err := s.repo.store.Put(ctx, sessionName(s.job.ID, s.next), s.repo.sealBody(kindSession, s.job.ID, f)); err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed = time.Now()
	s.next++
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
	if time.Since(s.renewed) > sessionGrace {
		return fmt.Errorf("%w since %s; make the backup again", ErrStale, s.renewed.Format(time.RFC3339))
	}
	return nil
}

// close ends the renewal.
func (s *session) close() {
	s.begin.Do(func() {}) // one that never began does not begin any more
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
