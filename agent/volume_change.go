package agent

import (
	"context"
	"errors"
	"time"

	"varve/catalog"
)

// A VolumeChange says what of a volume to change; nil leaves as it is.
type VolumeChange struct {
	Name         *string
	Description  *string
	Properties   map[string]string // all of them; an empty map removes them
	PreSnapshot  *string           // shell command; empty: none
	PostSnapshot *string
	HookLimit    *time.Duration // 0 means 30 seconds
}

// ChangeVolume changes what a volume is called and what is kept with it. Its
// hooks run with the rights of the daemon.
func (a *Agent) ChangeVolume(ctx context.Context, ref string, c VolumeChange) (VolumeView, error) {
	record, _, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	if c.Name != nil && record.Status == catalog.RestoringBackup {
		return VolumeView{}, fail(Conflict, "volume %s is being restored and gets its name at the end: rename it then", record.Name)
	}
	err = a.update(func(tx *catalog.Tx) error {
		r, err := catalog.Volumes.Get(tx, record.ID)
		if err != nil {
			return err
		}
		c.apply(&r)
		r.Updated = time.Now().UTC()
		if c.Name != nil {
			if err := checkName("volume", r.Name); err != nil {
				return err
			}
		}
		if err := errors.Join(checkTexts("volume", r.Description, r.Properties), checkHooks(r)); err != nil {
			return firstError(err)
		}
		return catalog.Volumes.Put(tx, r)
	})
	if err != nil {
		return VolumeView{}, err
	}
	if c.Name != nil {
		if err := a.renameLinks(record.ID); err != nil {
			return VolumeView{}, err
		}
	}
	return a.Volume(ctx, record.ID.String())
}

func (c VolumeChange) apply(r *catalog.Volume) {
	for _, text := range []struct{ from, to *string }{
		{c.Name, &r.Name}, {c.Description, &r.Description}, {c.PreSnapshot, &r.PreSnapshot}, {c.PostSnapshot, &r.PostSnapshot},
	} {
		if text.from != nil {
			*text.to = *text.from
		}
	}
	if c.Properties != nil {
		r.Properties = c.Properties
	}
	if c.HookLimit != nil {
		r.HookLimit = *c.HookLimit
	}
}
