package api

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

type (
	mountBody struct {
		Mount Mount `json:"mount"`
	}
	mountsBody struct {
		Mounts []Mount `json:"mounts"`
	}
	newMountBody struct {
		Mount NewMount `json:"mount"`
	}
	mountRef struct {
		Mount string `path:"mount" doc:"id"`
	}
)

func (s *Server) addMounts(h huma.API) {
	huma.Get(h, "/v1/mounts", func(context.Context, *struct{}) (*answer[mountsBody], error) {
		return &answer[mountsBody]{mountsBody{s.mounts()}}, nil
	})
	huma.Post(h, "/v1/mounts", func(ctx context.Context, in *struct{ Body newMountBody }) (*answer[mountBody], error) {
		path := in.Body.Mount.Path
		if !filepath.IsAbs(path) {
			return nil, answerFor(invalid(fmt.Sprintf("mount point %q is not an absolute path", path)))
		}
		if s.config.Mounts == nil {
			return nil, answerFor(&agent.Error{Reason: agent.Unavailable, Message: "this daemon cannot mount"})
		}
		m, err := s.config.Mounts.Mount(ctx, filepath.Clean(path))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[mountBody]{mountBody{m}}, nil
	}, created)
	huma.Delete(h, "/v1/mounts/{mount}", func(ctx context.Context, in *mountRef) (*struct{}, error) {
		if s.config.Mounts == nil {
			return nil, answerFor(&agent.Error{Reason: agent.NotFound, Message: fmt.Sprintf("no mount %q", in.Mount)})
		}
		return nil, answerFor(s.config.Mounts.Unmount(ctx, in.Mount))
	})
}

func (s *Server) mounts() []Mount {
	if s.config.Mounts == nil {
		return []Mount{}
	}
	return append([]Mount{}, s.config.Mounts.List()...)
}
