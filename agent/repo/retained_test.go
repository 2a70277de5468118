package repo

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
)

// A retaining store refuses to delete some objects, as one with a retention
// does.
type retaining struct {
	object.Store
	holds func(name string) bool
}

func (s *retaining) Delete(ctx context.Context, names ...string) error {
	var held object.RetainedError
	for _, name := range names {
		if s.holds(name) {
			held.Names, held.Said = append(held.Names, name), "403 AccessDenied until Friday"
		} else if err := s.Store.Delete(ctx, name); err != nil {
			return err
		}
	}
	if held.Names == nil {
		return nil
	}
	return &object.Error{Op: "delete", Store: "retaining", Err: &held}
}

// B9, B17: what a retention keeps stays, and stays hidden, and is told; all else
// goes. When the retention is over the rest goes.
func TestPruneOfARetention(t *testing.T) {
	for kind, holds := range map[string]func(string) bool{
		"names": func(name string) bool { return strings.HasPrefix(name, "v/") },
		"roots": func(name string) bool { return strings.Contains(name, "/b/") },
		"packs": func(name string) bool { return strings.HasPrefix(name, "p/") },
		"all":   func(string) bool { return true },
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem := object.NewMem()
				store := &retaining{mem, holds}
				r := testRepo(t, object.Retry(store, object.Policy{}), true)
				r.packTarget = 64 << 10
				ids, images := lineage(t, r, newVolume(1<<20), 4)
				time.Sleep(48 * time.Hour)
				kept, gone := ids[0], ids[1:]
				for _, id := range gone {
					if err := r.Delete(t.Context(), id); err != nil {
						t.Fatal(err)
					}
				}
				told := false
				for range 3 {
					report, err := r.Prune(t.Context(), PruneOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if report.Retained > 0 {
						told = true
						if len(report.Kept) != 1 || !strings.Contains(report.Kept[0].Error(), "until Friday") {
							t.Errorf("%d objects are retained, the reasons: %v; want one", report.Retained, report.Kept)
						}
					}
					if report.Freed.Objects < 0 || report.Freed.Bytes < 0 || kind == "all" && report.Freed != (Amount{}) {
						t.Errorf("freed %+v while %s is retained", report.Freed, kind)
					}
					time.Sleep(25 * time.Hour)
				}
				if !told {
					t.Error("no run says that something was retained")
				}
				hidden := func(r *Repo) {
					t.Helper()
					for _, id := range gone {
						if _, err := r.Backup(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("a deleted backup whose root is retained: %v", err)
						}
					}
					for b, err := range r.Backups(t.Context()) {
						if err != nil || b.ID != kept {
							t.Errorf("listed: %v, %v", b.ID, err)
						}
					}
				}
				fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer fresh.Close()
				hidden(fresh)
				compare(t, fresh, kept, images[kept])

				store.holds = func(string) bool { return false }
				for range 3 {
					prunes(t, fresh, PruneOptions{})
					time.Sleep(25 * time.Hour)
				}
				hidden(fresh)
				compare(t, fresh, kept, images[kept])
				for _, id := range gone {
					for name := range contents(t, mem) {
						if strings.Contains(name, id.String()) {
							t.Errorf("the retention is over, and %s is left", name)
						}
					}
				}
			})
		})
	}
}
