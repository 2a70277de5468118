package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// The lineage of a volume in a target has one writer, the host that the volume
// is on. Another host that restores the volume may adopt it: the volume has the
// same ID there, a mark where it is just as the backup that it was restored
// from, and a claim in the target. So its next incremental backup goes on from
// that one. The host before is told, and never stopped: what it backs up is
// whole, and forks the lineage, which is told too.

// A Takeover is that another host took over the backups of a volume that this
// host still has.
type Takeover struct {
	catalog.Claim
	TargetName string
	AfterName  string // of the backup that the other host goes on from; empty: it is gone
}

// pullClaims mirrors the claims of a repository in the catalog, after its
// backups were listed, and tells of those on volumes of this host.
func (a *Agent) pullClaims(ctx context.Context, t catalog.Target, r *repo.Repo) error {
	claims, err := r.Claims(ctx)
	if err != nil {
		return err
	}
	known := map[layers.ID]bool{}
	records, err := list(a, catalog.Claims)
	if err != nil {
		return err
	}
	for _, c := range records {
		known[c.ID] = true
	}
	claims = slices.DeleteFunc(claims, func(c repo.Claim) bool { return known[c.ID] })
	if len(claims) == 0 {
		return nil
	}
	err = a.update(func(tx *catalog.Tx) error {
		for _, c := range claims {
			if err := catalog.Claims.Put(tx, claimRecord(c, t.ID)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range claims {
		a.mu.Lock()
		v := a.volumes[c.Volume]
		a.mu.Unlock()
		if v == nil {
			continue
		}
		for _, over := range a.takeovers(v) {
			if over.ID == c.ID {
				a.log.Warn("another host has taken over the backups of a volume of this host", "volume", v.id, "target", t.Name, "host", c.Host, "after", c.After.Backup)
			}
		}
	}
	return nil
}

func claimRecord(c repo.Claim, target layers.ID) catalog.Claim {
	return catalog.Claim{
		ID: c.ID, TargetID: target, VolumeID: c.Volume, Epoch: c.Epoch, After: c.After.Backup,
		AfterEpoch: c.After.Epoch, AfterNumber: c.After.Number, Host: c.Host, Created: c.Created.UTC(),
	}
}

// takeOver makes this host the writer of a volume's backups in a target, from
// one of them on. id names the claim, also when it is tried again.
func (a *Agent) takeOver(ctx context.Context, r *repo.Repo, t catalog.Target, volume, backup, id layers.ID) (repo.Claim, error) {
	c, err := r.TakeOver(ctx, id, backup, a.config.Host)
	if err != nil {
		return c, targetError(t, "take over volume "+volume.String()+" in", err)
	}
	return c, a.update(func(tx *catalog.Tx) error {
		own := catalog.OwnClaim{RepositoryID: t.RepositoryID, ClaimID: c.ID, Epoch: c.Epoch}
		return errors.Join(
			catalog.Claims.Put(tx, claimRecord(c, t.ID)),
			change(tx, catalog.Volumes, volume, func(v *catalog.Volume) {
				others := slices.DeleteFunc(slices.Clone(v.Claims), func(o catalog.OwnClaim) bool { return o.RepositoryID == own.RepositoryID })
				v.Claims = append(others, own)
			}))
	})
}

// ownClaim is the claim under which this host backs up a volume into a target;
// its zero if there is none.
func ownClaim(v catalog.Volume, t catalog.Target) repo.Claim {
	for _, own := range v.Claims {
		if own.RepositoryID == t.RepositoryID {
			return repo.Claim{ID: own.ClaimID, Epoch: own.Epoch}
		}
	}
	return repo.Claim{}
}

// markRestored leaves a mark where a volume is just as a backup of it that was
// restored onto it, under the ID of the backup's own boundary: the next
// incremental backup goes by it. Where a snapshot has that ID it stays, and the
// next one compares with what the volume was before.
func (a *Agent) markRestored(v *volume, data *layers.Volume, b catalog.Backup) error {
	if b.BoundaryID.IsZero() {
		return nil
	}
	v.chain.Lock()
	defer v.chain.Unlock()
	if at, there := boundaryOf(data, b.BoundaryID); there && !at.Mark {
		return nil
	} else if there {
		if err := data.DropMark(b.BoundaryID); err != nil {
			return err
		}
	}
	// A crash leaves a snapshot of the system, which tidying makes a mark.
	s := catalog.Snapshot{
		ID: b.BoundaryID, VolumeID: v.id, Name: "restored_" + b.ID.String(), Size: data.Size(), Status: catalog.Creating, System: true, Created: time.Now().UTC(),
	}
	err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, s) })
	if err == nil {
		err = data.Snapshot(s.ID)
	}
	if err == nil {
		err = a.unseal(data, s.ID, true, nil)
	}
	if err == nil {
		a.tidyChain(v, data) // The marks that nobody goes by any more.
	}
	return err
}

// checkAbsent refuses to make a volume of an ID that there is already.
func (a *Agent) checkAbsent(id layers.ID) error {
	if record, _, err := a.findVolume(id.String()); ReasonOf(err) != NotFound {
		return fail(Conflict, "the volume is here already, as %s (%s): restore onto it, with --force, or delete it first", record.Name, id)
	}
	if _, err := os.Stat(a.volumeDir(id)); !errors.Is(err, fs.ErrNotExist) {
		return fail(Conflict, "the volume's folder %s is there already: start the daemon anew to use what is in it, or remove it", a.volumeDir(id))
	}
	return nil
}

// claimIn is the claim under which a backup is made. A volume that was adopted
// through one target is taken over in another by its first backup there.
func (c *creation) claimIn(ctx context.Context, r *repo.Repo) (repo.Claim, error) {
	var last catalog.Backup
	var own repo.Claim
	err := c.a.view(func(tx *catalog.Tx) error {
		record, err := catalog.Volumes.Get(tx, c.volume.id)
		if own = ownClaim(record, c.target); err != nil || len(record.Claims) == 0 || own.Epoch > 0 {
			return err
		}
		for _, b := range all(c.a, tx, catalog.Backups) {
			if b.VolumeID == c.volume.id && b.TargetID == c.target.ID && whole(b) && (last.ID.IsZero() || newer(b, last)) {
				last = b
			}
		}
		return nil
	})
	if err != nil || last.ID.IsZero() || last.Host == c.a.config.Host {
		return own, err
	}
	// The claim has the backup's ID, so that another try finds it.
	own, err = c.a.takeOver(ctx, r, c.target, c.volume.id, last.ID, c.backup.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return repo.Claim{}, nil // The catalog lags: it was deleted.
	}
	return own, err
}

// tellTakeover notes that another host took over what this one still backs up.
func (c *creation) tellTakeover(ctx context.Context, r *repo.Repo, op *operation) {
	if err := c.a.pullClaims(ctx, c.target, r); err != nil {
		c.a.log.Warn("whether another host took over the volume is not known", "volume", c.volume.id, "target", c.target.Name, "error", err)
	}
	for _, over := range c.a.takeovers(c.volume) {
		if over.TargetID == c.target.ID {
			op.addNote(over.Text() + ". This backup is whole and stands beside those, as a fork. " + takeoverCure(c.record.Name))
		}
	}
}

// takeoverCure says what ends a fork.
func takeoverCure(name string) string {
	return "If the volume lives there now, delete it here; if it lives here, say so with: varve volume adopt " + name
}

// AdoptVolume makes this host the writer of the backups of a volume that it
// has, in a target: they go on from the newest that the volume knows what
// changed since or else from the newest there is.
func (a *Agent) AdoptVolume(ctx context.Context, ref, targetRef string) (catalog.Claim, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return catalog.Claim{}, err
	}
	t, err := a.targetFor(ctx, targetRef)
	if err != nil {
		return catalog.Claim{}, err
	}
	data, err := a.usable(record, v)
	if err != nil {
		return catalog.Claim{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := a.sync(ctx, t, newRoots); err != nil {
		return catalog.Claim{}, err
	}
	var after catalog.Backup
	err = a.view(func(tx *catalog.Tx) error {
		backups := all(a, tx, catalog.Backups)
		line := newestIn(places(data, layers.ID{}), backups, v.id)
		if after = line[t.ID]; !after.ID.IsZero() {
			return nil
		}
		for _, b := range backups {
			if b.VolumeID == v.id && b.TargetID == t.ID && whole(b) && (after.ID.IsZero() || newer(b, after)) {
				after = b
			}
		}
		return nil
	})
	if err != nil {
		return catalog.Claim{}, err
	}
	if after.ID.IsZero() {
		return catalog.Claim{}, fail(Invalid, "target %s has no backup of volume %s: there is nothing to take over, its first backup is made with backup create", t.Name, record.Name)
	}
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return catalog.Claim{}, err
	}
	defer release()
	c, err := a.takeOver(ctx, r, t, v.id, after.ID, layers.NewID())
	return claimRecord(c, t.ID), err
}

// takeovers returns, of each target, the claim of another host on the volume's
// backups that is the latest, if it is later than what this host has.
func (a *Agent) takeovers(v *volume) []Takeover {
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	var found []Takeover
	err := a.view(func(tx *catalog.Tx) error {
		record, err := catalog.Volumes.Get(tx, v.id)
		if err != nil {
			return err
		}
		backups := all(a, tx, catalog.Backups)
		var line map[layers.ID]catalog.Backup
		if data != nil {
			line = newestIn(places(data, layers.ID{}), backups, v.id)
		}
		for _, t := range all(a, tx, catalog.Targets) {
			own := ownClaim(record, t)
			// After the catalog was lost, what the volume goes on from tells.
			if last := line[t.ID]; last.Epoch > own.Epoch {
				own = repo.Claim{ID: last.ClaimID, Epoch: last.Epoch}
			}
			if c, over := latestOver(all(a, tx, catalog.Claims), v.id, t.ID, own); over {
				found = append(found, Takeover{Claim: c, TargetName: t.Name, AfterName: nameOf(backups, c.After)})
			}
		}
		return nil
	})
	if err != nil {
		a.log.Error("whether other hosts took over a volume is not known", "volume", v.id, "error", err)
	}
	return found
}

// latestOver returns the claim on a volume in a target with the highest epoch
// of those that come after own.
func latestOver(claims []catalog.Claim, volume, target layers.ID, own repo.Claim) (latest catalog.Claim, over bool) {
	for _, c := range claims {
		if c.VolumeID == volume && c.TargetID == target && c.ID != own.ID && c.Epoch >= max(own.Epoch, latest.Epoch) {
			latest, over = c, true
		}
	}
	return latest, over
}

func nameOf(backups []catalog.Backup, id layers.ID) string {
	for _, b := range backups {
		if b.ID == id {
			return b.Name
		}
	}
	return ""
}

// Text says who took over what and when, for people.
func (o Takeover) Text() string {
	after := o.After.String()
	if o.AfterName != "" {
		after = o.AfterName + " (" + after + ")"
	}
	return fmt.Sprintf("%s took over its backups in target %s at %s and goes on there from backup %s", hostsText([]string{o.Host}), o.TargetName, o.Created.UTC().Format(time.DateTime), after)
}

// places returns where in a chain its boundaries stand, from 1 on, up to one of
// them, or all if that is zero.
func places(data *layers.Volume, last layers.ID) map[layers.ID]int {
	at := map[layers.ID]int{}
	for i, b := range data.Boundaries() {
		at[b.ID] = i + 1
		if b.ID == last {
			break
		}
	}
	return at
}

// newestIn returns by target which backup of a volume holds what is latest in
// its chain: the one that the next backup goes on from. What other hosts made of
// the volume is not in its chain.
func newestIn(at map[layers.ID]int, backups []catalog.Backup, volume layers.ID) map[layers.ID]catalog.Backup {
	newest := map[layers.ID]catalog.Backup{}
	for _, b := range backups {
		if b.VolumeID != volume || !whole(b) || at[b.BoundaryID] == 0 {
			continue
		}
		known, is := newest[b.TargetID]
		if here, there := at[b.BoundaryID], at[known.BoundaryID]; !is || here > there || here == there && newer(b, known) {
			newest[b.TargetID] = b
		}
	}
	return newest
}
