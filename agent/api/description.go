package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

// A TargetDescription is what a target's repository says about itself, and
// what the daemon keeps to open it, without any secret.
type TargetDescription struct {
	Label       string      `json:"label" doc:"the name that it was made under"`
	CreatedAt   Time        `json:"created_at" doc:"when the repository was made"`
	Format      int         `json:"format" doc:"version"`
	Encryption  string      `json:"encryption"`
	Compression string      `json:"compression"`
	Keys        []TargetKey `json:"keys"`
	Credentials []string    `json:"credentials" doc:"names of the variables that the daemon keeps to log in with"`
}

type descriptionBody struct {
	Description TargetDescription `json:"description"`
}

func (s *Server) addDescription(h huma.API) {
	huma.Get(h, "/v1/targets/{target}/description", func(ctx context.Context, in *targetRef) (*answer[descriptionBody], error) {
		d, err := s.config.Agent.DescribeTarget(ctx, in.Target)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[descriptionBody]{descriptionBody{DescribeTarget(d)}}, nil
	})
}

// DescribeTarget is a description as the API shows it.
func DescribeTarget(d agent.TargetDescription) TargetDescription {
	out := TargetDescription{
		Label: d.Label, CreatedAt: Time{d.Created}, Format: d.Version, Encryption: d.Suite, Compression: d.Compression,
		Keys: make([]TargetKey, len(d.Keys)), Credentials: append([]string{}, d.Credentials...),
	}
	for i, slot := range d.Keys {
		out.Keys[i] = DescribeSlot(slot)
	}
	return out
}
