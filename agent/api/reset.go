package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"varve/catalog"
)

// An action as Cinder has it: POST /v3/backups/ID/action.
type resetBody struct {
	Reset struct {
		Status string `json:"status" enum:"available,error"`
	} `json:"os-reset_status"`
}

func (s *Server) addReset(h huma.API) {
	huma.Post(h, "/v1/backups/{backup}/action", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
		Body   resetBody
	}) (*answer[backupBody], error) {
		v, err := s.config.Agent.ResetBackup(ctx, in.Backup, catalog.Status(in.Body.Reset.Status))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[backupBody]{backupBody{backup(v)}}, nil
	})
	huma.Post(h, "/v1/volumes/{volume}/action", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   resetBody
	}) (*answer[volumeBody], error) {
		v, err := s.config.Agent.ResetVolume(ctx, in.Volume, catalog.Status(in.Body.Reset.Status))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumeBody]{volumeBody{s.volume(v)}}, nil
	})
	huma.Post(h, "/v1/snapshots/{snapshot}/action", func(ctx context.Context, in *struct {
		Snapshot string `path:"snapshot" doc:"id, name, or VOLUME@SNAPSHOT"`
		Body     resetBody
	}) (*answer[snapshotBody], error) {
		v, err := s.config.Agent.ResetSnapshot(ctx, in.Snapshot, catalog.Status(in.Body.Reset.Status))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[snapshotBody]{snapshotBody{snapshot(v)}}, nil
	})
}

// ResetState sets the status of a volume, snapshot or backup, as kind says, to
// available or error.
func (c *Client) ResetState(ctx context.Context, kind, name, state string) error {
	var body resetBody
	body.Reset.Status = state
	_, err := call[struct{}](ctx, c, http.MethodPost, kind+"s", kind, name, "action", body)
	return err
}
