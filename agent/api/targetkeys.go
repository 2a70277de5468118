package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/layers"
)

// A TargetKey is a key slot of a target's repository. What opens it is never
// shown.
type TargetKey struct {
	ID        string  `json:"id"`
	Kind      string  `json:"kind" doc:"passphrase, key file, recovery key"`
	Label     string  `json:"label"`
	CreatedAt Time    `json:"created_at"`
	InUse     bool    `json:"in_use" doc:"the daemon opens the target with it"`
	Problem   *string `json:"problem" doc:"why it opens nothing"`

	ReplacedBy *string `json:"replaced_by" doc:"id of the slot that was made to replace it, in a rotation that was cut off: both open the target"`
}

// NewTargetKey is a key for a slot. One of passphrase, key_file and recovery is
// set.
type NewTargetKey struct {
	Passphrase string `json:"passphrase,omitempty" writeOnly:"true"`
	KeyFile    []byte `json:"key_file,omitempty" writeOnly:"true" doc:"content of a key file: 32 random bytes or more"`
	Recovery   bool   `json:"recovery,omitempty" doc:"a new recovery key, which the answer tells once"`
	Label      string `json:"label,omitempty" doc:"for people"`
}

type (
	targetKeyBody struct {
		Key         TargetKey `json:"key"`
		RecoveryKey *string   `json:"recovery_key,omitempty" doc:"told once and kept nowhere"`
		Replaced    []string  `json:"replaced,omitempty" doc:"ids of the slots that a rotation removed; more than one if an earlier one was cut off"`
	}
	targetKeysBody struct {
		Keys []TargetKey `json:"keys"`
	}
	newTargetKeyBody struct {
		Key NewTargetKey `json:"key"`
	}
	volumeKeyBody struct {
		Epoch uint32 `json:"epoch" doc:"how many keys the volume has had"`
	}
	slotRef struct {
		Target string `path:"target" doc:"id or name"`
		Slot   string `path:"slot" doc:"id"`
	}
)

func (s *Server) addTargetKeys(h huma.API) {
	huma.Get(h, "/v1/targets/{target}/keys", func(ctx context.Context, in *targetRef) (*answer[targetKeysBody], error) {
		slots, err := s.config.Agent.TargetKeys(ctx, in.Target)
		if err != nil {
			return nil, answerFor(err)
		}
		body := targetKeysBody{Keys: make([]TargetKey, len(slots))}
		for i, slot := range slots {
			body.Keys[i] = DescribeSlot(slot)
		}
		return &answer[targetKeysBody]{body}, nil
	})
	huma.Post(h, "/v1/targets/{target}/keys", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Body   newTargetKeyBody
	}) (*answer[targetKeyBody], error) {
		return keyAnswer(s.config.Agent.AddTargetKey(ctx, in.Target, agent.NewKey(in.Body.Key)))
	}, created)
	huma.Put(h, "/v1/targets/{target}/keys", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Body   newTargetKeyBody
	}) (*answer[targetKeyBody], error) {
		slot, err := s.config.Agent.UseTargetKey(ctx, in.Target, agent.NewKey(in.Body.Key))
		return keyAnswer(agent.AddedKey{KeySlot: slot}, err)
	}, func(o *huma.Operation) { o.Summary = "Open the target with another of its keys from now on" })
	huma.Delete(h, "/v1/targets/{target}/keys/{slot}", func(ctx context.Context, in *slotRef) (*struct{}, error) {
		id, err := parseSlot(in.Slot)
		if err == nil {
			err = s.config.Agent.RemoveTargetKey(ctx, in.Target, id)
		}
		return nil, answerFor(err)
	})
	huma.Post(h, "/v1/targets/{target}/keys/{slot}/rotate", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Slot   string `path:"slot" doc:"id"`
		Body   newTargetKeyBody
	}) (*answer[targetKeyBody], error) {
		id, err := parseSlot(in.Slot)
		if err != nil {
			return nil, answerFor(err)
		}
		return keyAnswer(s.config.Agent.RotateTargetKey(ctx, in.Target, id, agent.NewKey(in.Body.Key)))
	})
	huma.Post(h, "/v1/targets/{target}/volumes/{volume}/rotate", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Volume string `path:"volume" doc:"id, or name among the target's backups"`
	}) (*answer[volumeKeyBody], error) {
		epoch, err := s.config.Agent.RotateVolumeKey(ctx, in.Target, in.Volume)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumeKeyBody]{volumeKeyBody{epoch}}, nil
	}, func(o *huma.Operation) { o.Summary = "Seal the volume's next backups with a new key" })
}

func parseSlot(text string) (layers.ID, error) {
	id, err := layers.ParseID(text)
	if err != nil {
		return id, &agent.Error{Reason: agent.NotFound, Message: "no key slot has that id: target key list shows those there are"}
	}
	return id, nil
}

func keyAnswer(k agent.AddedKey, err error) (*answer[targetKeyBody], error) {
	if err != nil {
		return nil, answerFor(err)
	}
	body := targetKeyBody{Key: DescribeSlot(k.KeySlot)}
	if k.RecoveryKey != "" {
		body.RecoveryKey = &k.RecoveryKey
	}
	for _, id := range k.Replaced {
		body.Replaced = append(body.Replaced, id.String())
	}
	return &answer[targetKeyBody]{body}, nil
}

// DescribeSlot is a key slot as the API shows it.
func DescribeSlot(s agent.KeySlot) TargetKey {
	k := TargetKey{ID: s.ID.String(), Kind: s.Kind.String(), Label: s.Label, CreatedAt: Time{s.Created}, InUse: s.InUse}
	if s.Damage != nil {
		text := s.Damage.Error()
		k.Problem = &text
	}
	if !s.ReplacedBy.IsZero() {
		text := s.ReplacedBy.String()
		k.ReplacedBy = &text
	}
	return k
}

// TargetKeys returns the key slots of a target, oldest first.
func (c *Client) TargetKeys(ctx context.Context, target string) ([]TargetKey, error) {
	out, err := call[targetKeysBody](ctx, c, http.MethodGet, "targets", "target", target, "keys", nil)
	return out.Keys, err
}

// AddTargetKey makes a key slot. It returns the recovery key if one was asked
// for.
func (c *Client) AddTargetKey(ctx context.Context, target string, n NewTargetKey) (k TargetKey, recovery string, err error) {
	out, err := call[targetKeyBody](ctx, c, http.MethodPost, "targets", "target", target, "keys", newTargetKeyBody{n})
	return out.Key, orEmpty(out.RecoveryKey), err
}

// UseTargetKey makes the daemon open a target with another key.
func (c *Client) UseTargetKey(ctx context.Context, target string, n NewTargetKey) (TargetKey, error) {
	out, err := call[targetKeyBody](ctx, c, http.MethodPut, "targets", "target", target, "keys", newTargetKeyBody{n})
	return out.Key, err
}

// RemoveTargetKey removes the key slot of that id.
func (c *Client) RemoveTargetKey(ctx context.Context, target, slot string) error {
	target, err := ref("target", target)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path("targets", target, "keys", slot), nil, nil)
}

// A RotatedKey is what came of a rotation.
type RotatedKey struct {
	TargetKey
	Recovery string   // the recovery key, if one was asked for
	Replaced []string // IDs of the slots that are gone
}

// RotateTargetKey replaces the key of the slot of that id.
func (c *Client) RotateTargetKey(ctx context.Context, target, slot string, n NewTargetKey) (RotatedKey, error) {
	out, err := call[targetKeyBody](ctx, c, http.MethodPost, "targets", "target", target, "keys/"+slot+"/rotate", newTargetKeyBody{n})
	return RotatedKey{out.Key, orEmpty(out.RecoveryKey), out.Replaced}, err
}

// RotateVolumeKey makes a new key for a volume's backups in a target, and
// returns how many there have been.
func (c *Client) RotateVolumeKey(ctx context.Context, target, volume string) (epoch uint32, err error) {
	volume, err = ref("volume", volume)
	if err != nil {
		return 0, err
	}
	out, err := call[volumeKeyBody](ctx, c, http.MethodPost, "targets", "target", target, "volumes/"+url.PathEscape(volume)+"/rotate", nil)
	return out.Epoch, err
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
