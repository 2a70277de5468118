package main

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"varve/agent"
	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
	"varve/fuse"
	"varve/fuse/fusetest"
)

// Both sources of the mount keep the promises of fuse.Source, for a snapshot, a
// full backup and an incremental one.
func TestSources(t *testing.T) {
	ctx := t.Context()
	store := object.NewMem()
	a, err := agent.Start(ctx, agent.Config{
		State:     t.TempDir(),
		OpenStore: func(context.Context, agent.Place) (object.Store, error) { return store, nil },
		Log:       slog.New(slog.DiscardHandler),
	})
	check(t, err)
	defer a.Close()
	volume, err := a.CreateVolume(ctx, agent.NewVolume{Name: "v", Size: 8 * mib})
	check(t, err)
	_, err = a.AddTarget(ctx, agent.NewTarget{Name: "t", URL: "file:///t", NoEncryption: true})
	check(t, err)
	for i, name := range []string{"full", "incremental"} {
		write(t, a, bytes.Repeat([]byte{byte(1 + i)}, mib>>i), int64(i)*mib)
		_, op, err := a.CreateBackup(ctx, agent.NewBackup{Volume: "v", Name: name, Incremental: i > 0, Force: true})
		check(t, err)
		awaitOperation(t, a, op)
	}
	_, err = a.CreateSnapshot(ctx, "v", agent.NewSnapshot{Name: "s"})
	check(t, err)

	r, err := repo.Open(ctx, store, repo.Key{})
	check(t, err)
	for name, source := range map[string]struct {
		fuse.Source
		images int
	}{
		"agent": {agentSource{a}, 3},
		"repo":  {newRepoSource(ctx, r, slog.New(slog.DiscardHandler)), 2},
	} {
		t.Run(name, func(t *testing.T) {
			images, err := source.List(ctx)
			check(t, err)
			if len(images) != source.images {
				t.Errorf("%d images, want %d: %+v", len(images), source.images, images)
			}
			for _, img := range images {
				want := map[string]int64{"full": mib}[img.Name]
				if img.VolumeID != volume.ID || img.Used != want {
					t.Errorf("%s: %d bytes used of volume %s, want %d of %s", img.Name, img.Used, img.VolumeID, want, volume.ID)
				}
			}
			fusetest.Run(t, source)
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes to volume v as an NBD client does.
func write(t *testing.T, a *agent.Agent, p []byte, off int64) {
	t.Helper()
	export, err := a.OpenExport(t.Context(), "v")
	check(t, err)
	defer export.Close()
	_, err = export.Layer.(interface {
		WriteAt(p []byte, off int64) (int, error)
	}).WriteAt(p, off)
	check(t, err)
}

// awaitOperation waits until an operation has succeeded.
func awaitOperation(t *testing.T, a *agent.Agent, op catalog.Operation) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	end := op
	for end = range a.WatchOperation(ctx, op.ID) {
	}
	if end.State != catalog.Succeeded {
		t.Fatalf("%s: %s: %s", end.Kind, end.State, end.Error)
	}
}
