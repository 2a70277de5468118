package main

import (
	"context"
	"errors"
	"fmt"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/object"
	"varve/agent/repo"
	"varve/fuse"
	"varve/layers"
)

// This file is the way back when nothing is left but a target: no daemon, no
// state folder, no catalog.

// storeCalls is how many requests to the target run at once; more wait.
const storeCalls = 32

// A bareTarget is the repository at the URL of --target.
type bareTarget struct {
	*repo.Repo
	url string
}

// An openRepo is repo.Open, or one that does more.
type openRepo func(context.Context, object.Store, repo.Key) (*repo.Repo, error)

// openDirect opens the repository at the URL. A passphrase or key file is asked
// for only if the repository is encrypted.
func (c *call) openDirect() (*bareTarget, error) { return c.openDirectBy(repo.Open) }

func (c *call) openDirectBy(open openRepo) (*bareTarget, error) {
	at, err := absoluteURL(c.directURL())
	if err != nil {
		return nil, err
	}
	env, err := c.credentials(at)
	if err != nil {
		return nil, err
	}
	store, err := stores{c.environ}.open(c.ctx, agent.Place{URL: at, Env: env})
	if err != nil {
		return nil, err
	}
	store = object.Retry(object.Limit(store, storeCalls), object.Policy{})
	r, err := c.openRepository(store, at, open)
	if errors.Is(err, repo.ErrNoRepository) {
		return nil, fmt.Errorf("target %s: %w there; look at the URL, container and prefix included", at, err)
	}
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", at, err)
	}
	return &bareTarget{Repo: r, url: at}, nil
}

// openRepository opens the repository in the store. A secret that was given is
// used, so that a repository without encryption in the place of another is
// refused; if none was, one is asked for only if it is needed.
func (c *call) openRepository(store object.Store, at string, open openRepo) (*repo.Repo, error) {
	source := c.secrets()
	if !source.given() {
		r, err := open(c.ctx, store, repo.Key{})
		if !errors.Is(err, repo.ErrKey) {
			return r, err
		}
	}
	secret, err := source.read(at, false)
	if err != nil {
		return nil, err
	}
	return open(c.ctx, store, secret.key())
}

// directBackups lists what the target holds, newest first. A damaged backup is
// listed in error and hides no other.
func (c *call) directBackups() ([]api.Backup, error) {
	t, err := c.openDirect()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.backups(c)
}

func (t *bareTarget) backups(c *call) ([]api.Backup, error) {
	var all []api.Backup
	parents, names := map[layers.ID]bool{}, map[layers.ID]string{}
	var whole []repo.Backup
	for b, err := range t.Backups(c.ctx) {
		if err != nil && b.ID.IsZero() {
			return nil, fmt.Errorf("list backups in %s: %w", t.url, err)
		}
		view := t.describe(b)
		if err != nil {
			reason := err.Error()
			view.Status, view.FailReason = "error", &reason
		} else {
			whole = append(whole, b)
		}
		names[b.ID] = b.Name
		parents[b.Parent] = true
		all = append(all, view)
	}
	claims, err := t.Claims(c.ctx)
	if err != nil {
		return nil, fmt.Errorf("list backups in %s: %w", t.url, err)
	}
	forks := agent.ForksOf(whole, claims, names)
	for i := range all {
		id, _ := layers.ParseID(all[i].ID) // it was written by String
		all[i].HasDependentBackups, all[i].Forks = parents[id], api.Forks(forks[id])
	}
	sortNewestFirst(all)
	return all, nil
}

// describe is the backup as the API would show it.
func (t *bareTarget) describe(b repo.Backup) api.Backup {
	out := api.Backup{
		ID: b.ID.String(), Name: b.Name, Description: ptr(b.Description), Status: "available",
		Size: wholeGiB(b.Size), VolumeID: b.Volume.String(), Container: t.url,
		IsIncremental: b.Incremental, ObjectCount: b.Objects,
		DataTimestamp: api.Time{Time: b.DataTimestamp},
		CreatedAt:     api.Time{Time: b.Created},
		UpdatedAt:     api.Time{Time: b.Updated},
		VolumeName:    b.VolumeName, TargetURL: t.url, SizeBytes: b.Size,
		LogicalBytes: b.Logical, ChangedBytes: b.Changed, StoredBytes: b.Stored,
		Host: ptr(b.Host), Protected: b.Protected, Metadata: b.Meta,
	}
	if !b.Snapshot.IsZero() {
		out.SnapshotID = ptr(b.Snapshot.String())
	}
	if !b.Parent.IsZero() {
		out.ParentID = ptr(b.Parent.String())
	}
	return out
}

// find is the backup that ref, an id or a name, means.
func (t *bareTarget) find(c *call, ref string) (api.Backup, error) {
	all, err := t.backups(c)
	if err != nil {
		return api.Backup{}, err
	}
	return pickBackup(all, ref, t.url)
}

func (c *call) openBackup(ref string) (*bareTarget, api.Backup, error) {
	t, err := c.openDirect()
	if err != nil {
		return nil, api.Backup{}, err
	}
	b, err := t.find(c, ref)
	if err != nil {
		return nil, api.Backup{}, errors.Join(err, t.Close())
	}
	return t, b, nil
}

// directMount shows the target's backups at dir until Ctrl-C, or until
// somebody unmounts it.
func (c *call) directMount(dir string) error {
	t, err := c.openDirectBy(repo.OpenToList)
	if err != nil {
		return err
	}
	defer t.Close()
	log := newLog(c.stderr, c.onTerminal())
	source := newRepoSource(c.ctx, t.Repo, log)
	go source.List(c.ctx) // Whoever looks into the mount waits for this one.
	server, err := fuse.Mount(c.ctx, dir, source, fuse.Options{Log: log})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "mounted at %s; end it with Ctrl-C\n", server.Dir())
	server.Wait()
	return nil
}
