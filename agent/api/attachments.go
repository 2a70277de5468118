package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

type (
	attachmentBody struct {
		Attachment Attachment `json:"attachment"`
	}
	attachmentsBody struct {
		Attachments []Attachment `json:"attachments"`
	}
	newAttachmentBody struct {
		Attachment NewAttachment `json:"attachment"`
	}
)

func (s *Server) addAttachments(h huma.API) {
	huma.Get(h, "/v1/attachments", func(ctx context.Context, _ *struct{}) (*answer[attachmentsBody], error) {
		all, err := s.config.Agent.Attachments(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		body := attachmentsBody{Attachments: make([]Attachment, len(all))}
		for i, a := range all {
			body.Attachments[i] = attachment(a)
		}
		return &answer[attachmentsBody]{body}, nil
	})
	huma.Post(h, "/v1/attachments", func(ctx context.Context, in *struct{ Body newAttachmentBody }) (*answer[attachmentBody], error) {
		n := in.Body.Attachment
		a, err := s.config.Agent.Attach(ctx, agent.NewAttachment{
			Export: n.Export, ReadOnly: n.ReadOnly, Persist: n.Persist, Connections: n.Connections, BlockSize: n.BlockSize,
			Device: text(n.Device),
		})
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[attachmentBody]{attachmentBody{attachment(a)}}, nil
	}, created)
	huma.Delete(h, "/v1/attachments/{attachment}", func(ctx context.Context, in *struct {
		Attachment string `path:"attachment" doc:"id, device, or what is attached"`
		Force      bool   `query:"force" doc:"also while it is in use: that gets I/O errors"`
	}) (*struct{}, error) {
		return nil, answerFor(s.config.Agent.Detach(ctx, in.Attachment, in.Force))
	})
}

func attachment(a agent.Attachment) Attachment {
	return Attachment{
		ID: a.ID.String(), VolumeID: a.VolumeID.String(), Export: a.Export, Device: optional(a.Device),
		PID: a.PID, Process: a.Process, ReadOnly: a.ReadOnly, Persist: a.Persist, AttachedAt: Time{a.Since},
	}
}
