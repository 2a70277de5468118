package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
)

type (
	quotaBody struct {
		Quota map[string]Allowance `json:"quota_set"`
	}
	newQuotaBody struct {
		Quota map[string]int64 `json:"quota_set" doc:"limits to change, by resource; -1: no limit"`
	}
)

// An Allowance is how much there is of a resource and how much there may be.
type Allowance struct {
	InUse int64 `json:"in_use"`
	Limit int64 `json:"limit" doc:"-1: none"`
}

func (s *Server) addQuota(h huma.API) {
	huma.Get(h, "/v1/quota", func(ctx context.Context, _ *struct{}) (*answer[quotaBody], error) {
		return quotaAnswer(s.config.Agent.Quota(ctx))
	})
	huma.Put(h, "/v1/quota", func(ctx context.Context, in *struct{ Body newQuotaBody }) (*answer[quotaBody], error) {
		limits := map[catalog.Resource]int64{}
		for name, limit := range in.Body.Quota {
			limits[catalog.Resource(name)] = limit
		}
		if err := s.config.Agent.SetQuota(ctx, limits); err != nil {
			return nil, answerFor(err)
		}
		return quotaAnswer(s.config.Agent.Quota(ctx))
	})
}

func quotaAnswer(all []agent.Allowance, err error) (*answer[quotaBody], error) {
	if err != nil {
		return nil, answerFor(err)
	}
	body := quotaBody{map[string]Allowance{}}
	for _, q := range all {
		body.Quota[string(q.Resource)] = Allowance{q.InUse, q.Limit}
	}
	return &answer[quotaBody]{body}, nil
}
