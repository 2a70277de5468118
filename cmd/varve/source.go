package main

import (
	"context"

	"varve/agent"
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
