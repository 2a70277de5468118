package fuse

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// fresh is how long a list of images is good for. The kernel keeps names
	// for as long, so that what is new shows after twice that at most.
	fresh = 500 * time.Millisecond

	// listTime is how long a Source has for a list or an opening.
	listTime = time.Minute
)

// An index keeps the tree up to date. It lists the images when somebody asks
// for the tree and the last answer is no longer fresh.
type index struct {
	base context.Context // ends with the mount
	list func(context.Context) ([]Image, error)
	log  *slog.Logger

	mu      sync.Mutex
	current *tree         // of the last list that succeeded
	err     error         // of the last list
	at      time.Time     // when the last list ended; zero: never
	running chan struct{} // closed when the running list ends; nil: none runs
	lastIno uint64
}

// newIndex returns an index without images. The inode numbers that it gives
// begin after that of the root.
func newIndex(base context.Context, s Source, log *slog.Logger) *index {
	return &index{base: base, list: s.List, log: log, current: &tree{}, lastIno: rootIno}
}

// tree returns what is there now.
func (x *index) tree(ctx context.Context) (*tree, error) {
	x.mu.Lock()
	if !x.at.IsZero() && time.Since(x.at) < fresh {
		defer x.mu.Unlock()
		return x.current, x.err
	}
	if x.running == nil {
		x.running = make(chan struct{})
		go x.refresh(x.running)
	}
	running := x.running
	x.mu.Unlock()

	if _, err := await(ctx, running); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.current, x.err
}

// last returns the last tree that there was, without asking the Source.
func (x *index) last() *tree {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.current
}

// refresh lists the images and closes running.
func (x *index) refresh(running chan struct{}) {
	ctx, cancel := context.WithTimeout(x.base, listTime)
	defer cancel()
	var images []Image
	err := guard(func() (err error) {
		images, err = x.list(ctx)
		return err
	})

	x.mu.Lock()
	defer x.mu.Unlock()
	x.report(err)
	if err == nil {
		x.current = newTree(images, x.current, x.nextIno)
	}
	x.err, x.at, x.running = err, time.Now(), nil
	close(running)
}

// report logs an error that was not there the last time, and its end.
func (x *index) report(err error) {
	switch {
	case err != nil && (x.err == nil || x.err.Error() != err.Error()):
		x.log.Error("list snapshots and backups", logAttrs(err)...)
	case err == nil && x.err != nil:
		x.log.Info("list snapshots and backups: works again")
	}
}

func (x *index) nextIno() uint64 {
	x.lastIno++
	return x.lastIno
}
