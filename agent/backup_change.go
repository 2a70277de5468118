package agent

import (
	"context"
	"maps"
	"time"

	"varve/agent/repo"
	"varve/catalog"
)

// A BackupChange says what of a backup to change; nil leaves as it is.
type BackupChange struct {
	Name        *string
	Description *string
	Properties  map[string]string // all of them; an empty map removes them
	Set         map[string]string // these properties; the others stay
	Unset       []string          // properties to remove; those that are not there are passed over
	Protected   *bool             // against deletion
}

// ChangeBackup changes what a backup is called and what is kept with it, or
// keeps it from being deleted, or lets it be deleted again. That goes into the
// target, where other hosts read it with their next look at its list.
func (a *Agent) ChangeBackup(ctx context.Context, ref string, c BackupChange) (BackupView, error) {
	b, t, release, err := a.changeable(ctx, ref)
	if err != nil {
		return BackupView{}, err
	}
	defer release()
	text := repo.Caption{Name: b.Name, Description: b.Description, Meta: maps.Clone(b.Properties)}
	if err := c.apply(&text); err != nil { // before anybody is asked
		return BackupView{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	r, leave, err := a.useTarget(ctx, t)
	if err != nil {
		return BackupView{}, err
	}
	defer leave()
	if c.captions() {
		if err := a.recaption(ctx, r, b.Backup, c); err != nil {
			return BackupView{}, targetError(t, "change a backup in", err)
		}
	}
	if c.Protected != nil {
		if err := a.protect(ctx, r, b.Backup, *c.Protected); err != nil {
			return BackupView{}, targetError(t, "change a backup in", err)
		}
	}
	return a.Backup(ctx, b.ID.String())
}

// changeable returns a backup that is in its target, and the target, which is
// held until release is called.
func (a *Agent) changeable(ctx context.Context, ref string) (b BackupView, t catalog.Target, release func(), err error) {
	b, err = a.Backup(ctx, ref)
	if err != nil {
		return b, t, nil, err
	}
	if !whole(b.Backup) {
		return b, t, nil, fail(Conflict, "backup %s is in status %s: only one that is available can be changed", ref, b.Status)
	}
	return a.wholeBackup(ctx, b.ID.String())
}

// captions reports whether the texts of the backup are to be changed.
func (c BackupChange) captions() bool {
	return c.Name != nil || c.Description != nil || c.Properties != nil || len(c.Set) > 0 || len(c.Unset) > 0
}

// recaption changes the texts of a backup, from what the target has of them now.
func (a *Agent) recaption(ctx context.Context, r *repo.Repo, b catalog.Backup, c BackupChange) error {
	made, err := r.Recaption(ctx, b.ID, c.apply)
	if err != nil {
		return err
	}
	return a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Backups, b.ID, func(b *catalog.Backup) {
			b.Name, b.Description, b.Properties, b.Caption = made.Name, made.Description, made.Meta, made.Caption
			b.Updated = time.Now().UTC()
		})
	})
}

func (a *Agent) protect(ctx context.Context, r *repo.Repo, b catalog.Backup, on bool) error {
	if err := r.Protect(ctx, b.ID, on); err != nil {
		return err
	}
	return a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Backups, b.ID, func(b *catalog.Backup) { b.Protected, b.Updated = on, time.Now().UTC() })
	})
}

// apply changes texts, and refuses what they must not be.
func (c BackupChange) apply(text *repo.Caption) error {
	if c.Name != nil {
		if err := checkName("backup", *c.Name); err != nil {
			return err
		}
		text.Name = *c.Name
	}
	if c.Description != nil {
		text.Description = *c.Description
	}
	if c.Properties != nil {
		text.Meta = maps.Clone(c.Properties)
	}
	for key, value := range c.Set {
		if text.Meta == nil {
			text.Meta = map[string]string{}
		}
		text.Meta[key] = value
	}
	for _, key := range c.Unset {
		delete(text.Meta, key)
	}
	if len(text.Meta) == 0 {
		text.Meta = nil // as it is read again
	}
	return checkTexts("backup", text.Description, text.Meta)
}
