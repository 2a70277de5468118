package repo

import (
	"context"
	"errors"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// fullStore takes no packs.
type fullStore struct{ object.Store }

var errNoRoom = errors.New("no room")

func (s fullStore) Put(ctx context.Context, name string, b []byte) error {
	if name[:2] == "p/" {
		return errNoRoom
	}
	return s.Store.Put(ctx, name, b)
}

func freeArenas() int {
	arenas.mu.Lock()
	defer arenas.mu.Unlock()
	return len(arenas.free)
}

// Backups and restores, those that fail too, leave no memory behind: neither
// arenas nor pages in them.
func TestArenasComeBack(t *testing.T) {
	mem := object.NewMem()
	r := testRepo(t, mem, true)
	r.packTarget = 4 << 20 // an arena takes any
	job := func() Job {
		return Job{ID: layers.NewID(), Volume: layers.NewID(), Source: noise{5 * 4 << 20}}
	}
	// As many as a backup can need, so that none has to make one.
	var all [buffersMax][]byte
	for i := range all {
		var err error
		if all[i], err = takeArena(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range all {
		freeArena(b)
	}
	want := freeArenas()
	whole := job()
	if _, err := r.Create(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	failing := testRepo(t, fullStore{object.NewMem()}, true)
	for range 3 {
		if _, err := failing.Create(t.Context(), job()); !errors.Is(err, errNoRoom) {
			t.Fatalf("a backup to a full store ended with %v", err)
		}
		if err := r.Restore(t.Context(), whole.ID, nowhere{}, RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := freeArenas(); n != want {
		t.Errorf("%d arenas are free after backups and restores, %d were before", n, want)
	}
	b, err := takeArena()
	if err != nil {
		t.Fatal(err)
	}
	defer freeArena(b)
	for i := range b {
		if b[i] != 0 {
			t.Fatalf("byte %d of a new arena is %d", i, b[i])
		}
	}
}
