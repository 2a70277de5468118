package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"varve/agent/repo"
	"varve/fuse"
	"varve/layers"
)

const (
	// listFor is how long a mount of a target relies on one listing of it.
	listFor = 30 * time.Second
	// listAgain is how long after a listing that failed the next one begins.
	listAgain = 5 * time.Second
	// listTime is how long a listing may take.
	listTime = time.Minute
	// listPatience is how long somebody who looks waits for a listing, if there
	// was one before.
	listPatience = time.Second
)

// repoSource shows a mount what a target holds. The kernel asks often, and a
// listing goes over a network: so it is kept for a while, only roots that are
// new are read, and while the target is away what was there stays.
type repoSource struct {
	ctx  context.Context // ends with the mount
	repo *repo.Repo
	log  *slog.Logger

	mu      sync.Mutex
	images  []fuse.Image  // of the last listing that succeeded
	listed  bool          // there was one
	err     error         // of the last listing
	due     time.Time     // when the next one is
	running chan struct{} // closed when the running listing ends; nil: none runs

	// Only the running listing uses these.
	known   map[layers.ID]knownImage
	damaged map[layers.ID]bool // those that were logged
}

// A knownImage is an image whose name is of one caption of the backup.
type knownImage struct {
	fuse.Image
	caption string
}

func newRepoSource(ctx context.Context, r *repo.Repo, log *slog.Logger) *repoSource {
	return &repoSource{ctx: ctx, repo: r, log: log, known: map[layers.ID]knownImage{}, damaged: map[layers.ID]bool{}}
}

// List implements fuse.Source.
func (s *repoSource) List(ctx context.Context) ([]fuse.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !time.Now().Before(s.due) {
		if s.running == nil {
			s.running = make(chan struct{})
			go s.refresh(s.running)
		}
		if err := s.await(ctx, s.running); err != nil {
			return nil, err
		}
	}
	if !s.listed {
		return nil, s.err
	}
	return s.images, nil
}

// await waits for the running listing, with mu given back meanwhile.
func (s *repoSource) await(ctx context.Context, running <-chan struct{}) error {
	var patience <-chan time.Time
	if s.listed {
		patience = time.After(listPatience)
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-running:
	case <-patience:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// refresh lists what is there now, and closes running.
func (s *repoSource) refresh(running chan struct{}) {
	ctx, cancel := context.WithTimeout(s.ctx, listTime)
	defer cancel()
	images, err := s.list(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := listFor
	switch {
	case err != nil:
		wait = listAgain
		if s.listed && s.err == nil && s.ctx.Err() == nil {
			s.log.Warn("list the target: what was there before is shown until it answers", "err", err)
		}
	case s.err != nil:
		s.log.Info("list the target: works again")
	}
	if err == nil {
		s.images, s.listed = images, true
	}
	s.err, s.due, s.running = err, time.Now().Add(wait), nil
	close(running)
}

// list asks the target for names, and for the roots of those that are not known.
func (s *repoSource) list(ctx context.Context) ([]fuse.Image, error) {
	known := func(id layers.ID, caption string) bool {
		image, ok := s.known[id]
		return ok && image.caption == caption
	}
	var images []fuse.Image
	there := make(map[layers.ID]knownImage)
	for b, err := range s.repo.NewBackups(ctx, known) {
		if err != nil && b.ID.IsZero() {
			maps.Copy(s.known, there)
			return nil, err
		}
		image, ok := s.known[b.ID]
		switch {
		case ok && image.caption == b.Caption:
		case err != nil:
			if !s.damaged[b.ID] {
				s.log.Warn("a damaged backup is not shown", "backup", b.ID, "err", err)
			}
			s.damaged[b.ID] = true
			continue
		default:
			image = knownImage{imageOf(b), b.Caption}
		}
		there[b.ID] = image
		images = append(images, image.Image)
	}
	s.known = there
	return images, nil
}

// imageOf is a backup as a mount shows it.
func imageOf(b repo.Backup) fuse.Image {
	image := fuse.Image{ID: b.ID, VolumeID: b.Volume, Volume: b.VolumeName, Name: b.Name, Size: b.Size, Time: b.DataTimestamp}
	if !b.Incremental {
		image.Used = min(b.Logical, b.Size) // it added all that it has, in whole blocks
	}
	return image
}

// Open implements fuse.Source.
func (s *repoSource) Open(ctx context.Context, id layers.ID) (fuse.Handle, error) {
	l, err := s.repo.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	return l, nil
}
