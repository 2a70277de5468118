package repo

import (
	"context"
	"fmt"
	"time"
)

// footingFresh is how long what was asked about a backup's footing is taken
// for true: pruning leaves what was needed then for a whole grace.
const footingFresh = 10 * time.Minute

// A footing is what a backup that is being made stands on, and loses if
// pruning takes it away: its parent, and its own packs, which its session
// keeps. Where a backup takes long it is asked for by name: design.md, section
// 7, "Pruning".
type footing struct {
	repo   *Repo
	parent rootName // zero: none
	// asked is when somebody began to look, the last time that the parent was
	// found there and not deleted: by name, or in a listing first, which may be
	// sessionAfter older.
	asked moment
}

// deleted reports whether the parent has a tombstone.
func (f *footing) deleted(ctx context.Context) (bool, error) {
	there, err := f.repo.exists(ctx, tombstoneName(f.parent.volume, f.parent.backup))
	if err != nil {
		return false, fmt.Errorf("look for the tombstone of the parent: %w", err)
	}
	return there, nil
}

// hold makes sure that the backup may be committed now: nothing that it
// stands on went, nor will before its root is seen. s is its session. A host
// that stood still while it asked asks again, under a session that has no gap.
func (f *footing) hold(ctx context.Context, s *session) error {
	for {
		if err := s.check(); err != nil {
			return err
		}
		if f.repo.passed(f.asked) <= footingFresh {
			return nil
		}
		if err := f.ask(ctx, s); err != nil {
			return err
		}
	}
}

func (f *footing) ask(ctx context.Context, s *session) error {
	asked := f.repo.moment()
	if err := s.present(ctx); err != nil {
		return err
	}
	if f.parent == (rootName{}) {
		f.asked = asked
		return nil
	}
	// In this order: the tombstone goes after the root.
	deleted, err := f.deleted(ctx)
	if err != nil {
		return err
	}
	there, err := f.repo.exists(ctx, f.parent.String())
	switch {
	case err != nil:
		return fmt.Errorf("look for the root of the parent: %w", err)
	case !there:
		return fmt.Errorf("%w: %s was deleted and pruned while the backup was made; make a full backup", ErrParentGone, f.parent.backup)
	case deleted && !s.leans():
		return fmt.Errorf("%w: %s was deleted while the backup was made; make a full backup", ErrParentGone, f.parent.backup)
	}
	f.asked = asked
	return nil
}

// overtaken reports whether so much time went by since hold that what it
// found may not be true any more.
func (f *footing) overtaken() bool { return f.repo.passed(f.asked) > sessionGrace }
