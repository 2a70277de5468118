package agent

import (
	"context"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"varve/catalog"
)

// C2: what one host calls a backup, and keeps with it, the other has after a
// poll, which reads nothing else; what is refused changes nothing.
func TestChangeBackup(t *testing.T) {
	_, one, w2, two := twoHosts(t)
	createVolume(t, one, "w", mib)
	backUp(t, one, NewBackup{Volume: "w", Name: "made", Description: "d", Properties: map[string]string{"a": "1", "b": "2"}})
	poll := func() {
		t.Helper()
		if err := two.sync(t.Context(), must(two.Target(t.Context(), "t1"))(t), newRoots); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(a *Agent, name, description string, properties map[string]string) {
		t.Helper()
		b, err := a.Backup(t.Context(), name)
		if err != nil || b.Description != description || !maps.Equal(b.Properties, properties) {
			t.Errorf("%s is %q %v, %v; want %q %v", name, b.Description, b.Properties, err, description, properties)
		}
	}
	poll()
	wants(two, "made", "d", map[string]string{"a": "1", "b": "2"})
	must(one.ChangeBackup(t.Context(), "made", BackupChange{Name: ptr("renamed"), Set: map[string]string{"b": "3", "c": "4"}, Unset: []string{"a", "none"}}))(t)
	wants(one, "renamed", "d", map[string]string{"b": "3", "c": "4"})
	wants(two, "made", "d", map[string]string{"a": "1", "b": "2"})
	var reads atomic.Int64
	w2.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op == "get" && strings.Contains(name, "/b/") {
			reads.Add(1)
		}
		return nil
	})
	poll()
	poll()
	if n := reads.Load(); n != 1 {
		t.Errorf("%d roots were read for one that was renamed", n)
	}
	wants(two, "renamed", "d", map[string]string{"b": "3", "c": "4"})

	// The other way round, and all at once.
	changed := must(two.ChangeBackup(t.Context(), "renamed", BackupChange{Description: ptr(""), Properties: map[string]string{}, Protected: ptr(true)}))(t)
	if !changed.Protected || !changed.Updated.After(changed.Created) {
		t.Errorf("changed: %+v", changed.Backup)
	}
	if err := one.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	wants(one, "renamed", "", nil)
	var all sync.WaitGroup
	together := map[string]string{}
	for _, key := range []string{"k1", "k2", "k3", "k4"} {
		together[key] = "v"
		all.Go(func() {
			if _, err := one.ChangeBackup(t.Context(), "renamed", BackupChange{Set: map[string]string{key: "v"}}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := one.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	wants(one, "renamed", "", together)
	for _, bad := range []BackupChange{
		{Name: ptr("")}, {Name: ptr("a@b")}, {Description: ptr(strings.Repeat("x", maxDescription+1))},
		{Set: map[string]string{"": "no name"}}, {Set: map[string]string{"k": strings.Repeat("<", maxProperties-1)}},
	} {
		_, err := one.ChangeBackup(t.Context(), "renamed", bad)
		wantError(t, err, Invalid)
	}
	wants(one, "renamed", "", together)
	_, err := one.ChangeBackup(t.Context(), "none", BackupChange{Name: ptr("x")})
	wantError(t, err, NotFound)
}

// A poll that read the list before a change does not take it back.
func TestChangeBackupBesideAPoll(t *testing.T) {
	_, _, w2, two := twoHosts(t)
	var begun atomic.Bool
	w2.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if op == "get" && strings.Contains(name, "/b/") && begun.CompareAndSwap(false, true) {
			must(two.ChangeBackup(context.WithoutCancel(t.Context()), "inc", BackupChange{Name: ptr("renamed")}))(t)
		}
		return nil
	})
	if err := two.SyncTarget(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if !begun.Load() {
		t.Fatal("the sync read no root")
	}
	b, err := two.Backup(t.Context(), "renamed")
	if err != nil || b.Status != catalog.Available {
		t.Errorf("after the poll: %v, %v", b.Backup, err)
	}
}
