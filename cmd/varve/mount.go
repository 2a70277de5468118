package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/fuse"
	"varve/layers"
)

func (p *program) mountCommand() *cli.Command {
	return p.verb("mount", "DIR", "show every snapshot and backup as a file in DIR/VOLUME/NAME/disk.raw; "+
		"with --target URL, the backups of that target, until Ctrl-C", nil, (*call).mount)
}

func (p *program) unmountCommand() *cli.Command {
	return p.verb("unmount", "DIR", "end a mount, or clear away what one that was killed has left", nil, (*call).unmount)
}

func (c *call) mount() error {
	dir, err := filepath.Abs(c.args[0])
	if err != nil {
		return fmt.Errorf("mount %s: %w", c.args[0], err)
	}
	if c.directURL() != "" {
		return c.directMount(dir)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	m, err := client.Mount(c.ctx, dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "mounted at %s; end it with: varve unmount %s\n", m.Path, m.Path)
	return nil
}

// unmount ends a mount of the daemon. One that the daemon has not, because it
// was killed, or because a program without a daemon mounts there, is taken away
// from here.
func (c *call) unmount() error {
	dir, err := filepath.Abs(c.args[0])
	if err != nil {
		return fmt.Errorf("unmount %s: %w", c.args[0], err)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, noAnswer := client.Mounts(c.ctx)
	// The daemon names the folder without symbolic links.
	names := []string{dir}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		names = append(names, real)
	}
	for _, m := range all {
		if slices.Contains(names, m.Path) {
			return client.Unmount(c.ctx, m.ID)
		}
	}
	err = fuse.Unmount(c.ctx, dir)
	switch {
	case err == nil:
		return nil
	case noAnswer != nil:
		return fmt.Errorf("%w; and the daemon was asked for its mounts: %w", err, noAnswer)
	case errors.Is(err, fuse.ErrNotMounted) || errors.Is(err, fs.ErrNotExist):
		return &agent.Error{Reason: agent.NotFound,
			Message: fmt.Sprintf("nothing of Varve is mounted at %s; \"varve status\" shows the daemon's mounts", dir)}
	}
	return err
}

// mountTable is what the daemon has mounted: api.Mounts.
type mountTable struct {
	ctx    context.Context // ends with the daemon, and the mounts with it
	source fuse.Source
	log    *slog.Logger

	mu     sync.Mutex
	mounts map[string]mounted
}

type mounted struct {
	api.Mount
	server *fuse.Server
}

func newMountTable(ctx context.Context, source fuse.Source, log *slog.Logger) *mountTable {
	return &mountTable{ctx: ctx, source: source, log: log, mounts: map[string]mounted{}}
}

// Mount implements api.Mounts. The mount outlives the request.
func (t *mountTable) Mount(_ context.Context, path string) (api.Mount, error) {
	server, err := fuse.Mount(t.ctx, path, t.source, fuse.Options{Log: t.log})
	if err != nil {
		return api.Mount{}, mountError(err)
	}
	m := api.Mount{ID: layers.NewID().String(), Path: server.Dir(), CreatedAt: api.Time{Time: time.Now()}}
	t.mu.Lock()
	t.mounts[m.ID] = mounted{m, server}
	t.mu.Unlock()
	go func() {
		server.Wait()
		t.forget(m.ID)
	}()
	return m, nil
}

// List implements api.Mounts.
func (t *mountTable) List() []api.Mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []api.Mount
	for _, m := range t.mounts {
		all = append(all, m.Mount)
	}
	slices.SortFunc(all, func(a, b api.Mount) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Unmount implements api.Mounts.
func (t *mountTable) Unmount(ctx context.Context, id string) error {
	t.mu.Lock()
	m, there := t.mounts[id]
	t.mu.Unlock()
	if !there {
		return fmt.Errorf("mount %s: %w", id, fs.ErrNotExist)
	}
	if err := m.server.Unmount(ctx); err != nil {
		return mountError(err)
	}
	t.forget(id) // files that are still open in it may hold it for long
	return nil
}

func (t *mountTable) forget(id string) {
	t.mu.Lock()
	delete(t.mounts, id)
	t.mu.Unlock()
}

// unmountAll ends every mount, at most until ctx ends.
func (t *mountTable) unmountAll(ctx context.Context) {
	for _, m := range t.List() {
		if err := t.Unmount(ctx, m.ID); err != nil {
			t.log.Error("unmount", "dir", m.Path, "err", err)
		}
	}
}

// mountError makes what stands in the way of a mount a refusal: it is nothing
// that went wrong inside the daemon.
func mountError(err error) error {
	reason := agent.ReasonOf(err)
	if reason == agent.Internal {
		reason = agent.Conflict
	}
	return &agent.Error{Reason: reason, Message: err.Error()}
}
