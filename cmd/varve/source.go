package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"varve/agent"
	"varve/agent/repo"
	"varve/fuse"
	"varve/layers"
)

// agentSource shows a mount what the daemon has.
type agentSource struct{ agent *agent.Agent }

func (s agentSource) List(ctx context.Context) ([]fuse.Image, error) {
	all, err := s.agent.Images(ctx)
	images := make([]fuse.Image, len(all))
	for i, a := range all {
		images[i] = fuse.Image(a)
	}
	return images, err
}

func (s agentSource) Open(ctx context.Context, id layers.ID) (fuse.Handle, error) {
	image, err := s.agent.OpenImage(ctx, id)
	if err != nil {
		return nil, err // not image: a nil pointer in an interface is not nil
	}
	return image, nil
}

// listFor is how long a mount of a target relies on one listing of it.
const listFor = 30 * time.Second

// repoSource shows a mount what a target holds. A listing reads every backup's
// root, over a network perhaps, and the kernel asks often.
type repoSource struct {
	repo *repo.Repo
	log  *slog.Logger

	mu     sync.Mutex // held while the target is listed
	listed time.Time
	images []fuse.Image
}

func (s *repoSource) List(ctx context.Context) ([]fuse.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.listed.IsZero() && time.Since(s.listed) < listFor {
		return s.images, nil
	}
	var images []fuse.Image
	for b, err := range s.repo.Backups(ctx) {
		if err != nil {
			if b.ID.IsZero() {
				return nil, err
			}
			s.log.Warn("a damaged backup is not shown", "backup", b.ID, "err", err)
			continue
		}
		image := fuse.Image{ID: b.ID, VolumeID: b.Volume, Volume: b.VolumeName, Name: b.Name, Size: b.Size, Time: b.DataTimestamp}
		if !b.Incremental {
			image.Used = min(b.Logical, b.Size) // it added all that it has, in whole blocks
		}
		images = append(images, image)
	}
	s.images, s.listed = images, time.Now()
	return images, nil
}

func (s *repoSource) Open(ctx context.Context, id layers.ID) (fuse.Handle, error) {
	l, err := s.repo.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	return l, nil
}
