package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
)

// A Fork is where the backups of a volume go on in several ways, each written by
// another host. All of them are whole.
type Fork struct {
	AfterID string     `json:"after_id" doc:"the last backup that they have in common; it may be deleted by now"`
	Sides   []ForkSide `json:"sides"`
	Text    string     `json:"text" doc:"the same, for people"`
}

// A ForkSide is one of the ways in which backups go on after a fork.
type ForkSide struct {
	Hosts     []string `json:"hosts" doc:"that wrote them"`
	BackupIDs []string `json:"backup_ids" doc:"oldest first"`
}

// A Takeover is that another host took over the backups of a volume that this
// one has.
type Takeover struct {
	Container string `json:"container" doc:"name of the target"`
	Host      string `json:"host"`
	AfterID   string `json:"after_id" doc:"the backup that the host goes on from"`
	CreatedAt Time   `json:"created_at"`
	Text      string `json:"text" doc:"the same, for people"`
}

// NewClaim says where to take over a volume's backups.
type NewClaim struct {
	Container *string `json:"container,omitempty" doc:"id or name of the target; may be left out if there is one only"`
}

// A Claim says that this host writes a volume's backups from now on.
type Claim struct {
	ID        string `json:"id"`
	VolumeID  string `json:"volume_id"`
	TargetID  string `json:"target_id"`
	Host      string `json:"host"`
	Epoch     int64  `json:"epoch" doc:"goes up by one with each claim"`
	AfterID   string `json:"after_id" doc:"the backup that the next ones go on from"`
	CreatedAt Time   `json:"created_at"`
}

type (
	newClaimBody struct {
		Adopt NewClaim `json:"adopt"`
	}
	claimBody struct {
		Claim Claim `json:"claim"`
	}
)

func (s *Server) addLineage(h huma.API) {
	huma.Post(h, "/v1/volumes/{volume}/adopt", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   newClaimBody
	}) (*answer[claimBody], error) {
		c, err := s.config.Agent.AdoptVolume(ctx, in.Volume, text(in.Body.Adopt.Container))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[claimBody]{claimBody{claim(c)}}, nil
	}, created)
}

func claim(c catalog.Claim) Claim {
	return Claim{
		ID: c.ID.String(), VolumeID: c.VolumeID.String(), TargetID: c.TargetID.String(), Host: c.Host, Epoch: int64(c.Epoch),
		AfterID: c.After.String(), CreatedAt: Time{c.Created},
	}
}

// Forks describes forks.
func Forks(all []*agent.Fork) []Fork {
	forks := make([]Fork, len(all))
	for i, f := range all {
		forks[i] = Fork{AfterID: f.After.String(), Sides: make([]ForkSide, len(f.Sides)), Text: f.Text()}
		for j, side := range f.Sides {
			ids := make([]string, len(side.Backups))
			for k, id := range side.Backups {
				ids[k] = id.String()
			}
			forks[i].Sides[j] = ForkSide{side.Hosts, ids}
		}
	}
	return forks
}

func takeovers(all []agent.Takeover) []Takeover {
	out := make([]Takeover, len(all))
	for i, o := range all {
		out[i] = Takeover{Container: o.TargetName, Host: o.Host, AfterID: o.After.String(), CreatedAt: Time{o.Created}, Text: o.Text()}
	}
	return out
}
