package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"varve/layers"
)

// A survey is what a pruning run finds in the store besides packs: who is at
// work, which backups there are, and what was condemned before. It was made in
// this order: a session that is not there any more has its root listed.
type survey struct {
	now      time.Time // by the store's clock, or before it: never after
	told     bool      // the run's own session said what time it is
	sessions map[layers.ID]*atWork
	roots    []listedRoot
	written  map[layers.ID]time.Time   // when the root of a backup was, by the store's clock; zero: not known
	stones   map[layers.ID]listedStone // by backup
	lists    []listedList
	holds    map[layers.ID][]string // names of the objects that protect a backup
	captions map[layers.ID][]captionName

	moves  map[layers.ID][]listedMove // relocations, by volume
	leaned map[rootName]bool          // parents of the backups that are being made
}

// atWork is a backup whose session is listed.
type atWork struct {
	names  []string  // of all objects of the session
	newest string    // the last renewal
	alive  time.Time // when the newest of the objects was written, by the store's clock
}

// A listedStone is a tombstone as a listing has it.
type listedStone struct {
	volume, backup layers.ID
	size           int64
	modified       time.Time
}

func (s listedStone) name() string { return tombstoneName(s.volume, s.backup) }

// A listedList is a condemned list as a listing has it.
type listedList struct {
	id       layers.ID
	size     int64
	modified time.Time
}

// survey looks at the store. own is an object that the run has just written as
// a session, so that the listing tells what time it is.
func (r *Repo) survey(ctx context.Context, own layers.ID) (*survey, error) {
	s := &survey{
		sessions: make(map[layers.ID]*atWork), written: make(map[layers.ID]time.Time),
		stones: make(map[layers.ID]listedStone), leaned: make(map[rootName]bool),
	}
	if err := s.listSessions(ctx, r, own); err != nil {
		return nil, err
	}
	l, err := r.list(ctx, volumesRoot)
	if err != nil {
		return nil, err
	}
	s.tick(l.newest)
	s.roots, s.holds, s.captions, s.moves = l.roots, l.holds, l.captions, l.moves
	for _, root := range l.roots {
		s.written[root.name.backup] = root.modified
	}
	for _, stone := range l.stones {
		s.stones[stone.backup] = stone
	}
	for info, err := range r.store.List(ctx, listRoot) {
		if err != nil {
			return nil, fmt.Errorf("list what is condemned: %w", err)
		}
		s.tick(info.Modified)
		if id, ok := parseList(info.Name); ok {
			s.lists = append(s.lists, listedList{id, info.Size, info.Modified})
		}
	}
	return s, s.readSessions(ctx, r)
}

// tick takes in a time of the store's clock. Once the run's own session has told
// it nobody else does: one object that claims to be from next year would make
// everything old.
func (s *survey) tick(t time.Time) {
	if !s.told && t.After(s.now) {
		s.now = t
	}
}

// age is how old an object is at least.
func (s *survey) age(modified time.Time) time.Duration { return s.now.Sub(modified) }

func (s *survey) listSessions(ctx context.Context, r *Repo, own layers.ID) error {
	last := make(map[layers.ID]int64)
	for info, err := range r.store.List(ctx, sessionRoot) {
		if err != nil {
			return fmt.Errorf("list sessions: %w", err)
		}
		s.tick(info.Modified)
		backup, ok := parseSessionOwner(info.Name)
		if ok && backup == own {
			s.now, s.told = info.Modified, true
		}
		if !ok || backup == own {
			continue
		}
		w := s.sessions[backup]
		if w == nil {
			w = new(atWork)
			s.sessions[backup] = w
		}
		w.names = append(w.names, info.Name)
		if info.Modified.After(w.alive) {
			w.alive = info.Modified
		}
		if _, n, ok := parseSession(info.Name); ok && n >= last[backup] {
			last[backup], w.newest = n, info.Name
		}
	}
	return nil
}

// parseSessionOwner returns the backup that an object below s/ belongs to.
func parseSessionOwner(name string) (layers.ID, bool) {
	text, found := strings.CutPrefix(name, sessionRoot)
	if !found || len(text) <= 37 || text[36] != '-' {
		return layers.ID{}, false
	}
	id, err := layers.ParseID(text[:36])
	return id, err == nil && id.String() == text[:36]
}

// readSessions finds out on which parents the backups lean that are being
// made. Those whose root is listed need no session any more.
func (s *survey) readSessions(ctx context.Context, r *Repo) error {
	for backup, w := range s.sessions {
		if _, committed := s.written[backup]; committed || w.newest == "" || s.age(w.alive) > sessionDead {
			continue
		}
		b, err := r.readAll(ctx, w.newest, maxBody)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed since: the backup is committed, or was undone
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return fmt.Errorf("read session: %w", err)
		}
		f, err := r.openBody(b, kindSession)
		if err != nil {
			return damaged(w.newest, 0, fmt.Errorf("%w; as long as it is there, nobody knows what its backup needs, and nothing is pruned", err))
		}
		if parent, ok := parseRoot(f.text(bodyParentRoot)); ok {
			s.leaned[parent] = true
		}
	}
	return nil
}
