package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// A rich is a repository with objects of every kind that there is: two volumes,
// one with two keys; two key slots; a backup that is deleted, one that is
// protected and renamed, one that was repaired; a lineage that was taken over; what a pruning
// condemned, and what a host left that is at work.
type rich struct {
	store   *object.Mem
	age     time.Duration // since the first object
	images  map[layers.ID][]byte
	backups map[layers.ID]Backup
	old     map[string][]byte // what was there once, and is not any more
	names   []string

	repository layers.ID
	broken     string          // the pack that was repaired
	moved      map[string]bool // packs that the repair wrote
}

// everyKind are the kinds of objects of a rich repository, by the prefix of
// their names, or by their letter below v/.
var everyKind = []string{"repo", "k/", "s/", "g/", "p/", "m/", "k", "b", "d", "h", "n", "r", "c"}

// objectKindOf is one of everyKind.
func objectKindOf(name string) string {
	if kind := kindInVolume(name); kind != "" {
		return kind
	}
	if name == headName {
		return name
	}
	return name[:2]
}

// newRich makes it, inside a bubble of time.
func newRich(t *testing.T) *rich {
	begun := time.Now()
	store := object.NewMem()
	x := &rich{store: store, images: make(map[layers.ID][]byte), old: make(map[string][]byte)}
	remember := func() { maps.Copy(x.old, contents(t, store)) }
	r := testRepo(t, store, true)
	r.packTarget, x.repository = 16<<10, r.ID()
	if _, err := r.AddSlot(t.Context(), Key{KeyFile: keyFile}, "file"); err != nil {
		t.Fatal(err)
	}
	a, b := newVolume(300<<10+1234), newVolume(40<<10)
	fillNoise(t, a)
	ids, images := lineage(t, r, a, 4)
	other, more := lineage(t, r, b, 3)
	maps.Copy(images, more)
	must(r.TakeOver(t.Context(), layers.NewID(), other[2], "another host"))(t)
	x.breakAndRepair(t, r, ids[0], images[ids[0]])
	if _, err := r.RotateVolumeKey(t.Context(), a.id); err != nil {
		t.Fatal(err)
	}
	a.write(5000, []byte("under the second key"))
	last, err := a.backup(t.Context(), r, ids[3])
	if err != nil {
		t.Fatal(err)
	}
	images[last.ID] = bytes.Clone(a.bytes)
	for _, id := range []layers.ID{ids[1], last.ID} {
		if err := r.Protect(t.Context(), id, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Recaption(t.Context(), ids[1], renamed("renamed")); err != nil {
		t.Fatal(err)
	}
	drop := func(id layers.ID) {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		delete(images, id)
	}
	drop(other[0])
	remember()
	time.Sleep(30 * time.Hour)
	prunes(t, r, PruneOptions{})
	remember()
	time.Sleep(30 * time.Hour)
	prunes(t, r, PruneOptions{}) // the root of the deleted one goes, and its packs
	drop(ids[2])
	alone, err := b.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	drop(alone.ID)
	time.Sleep(30 * time.Hour)
	drop(other[1])
	prunes(t, r, PruneOptions{}) // condemns what nobody shares
	x.crash(t, a, last.ID)
	x.images = images
	x.backups = (&sample{}).backups(t, contents(t, store), Key{Passphrase: secret})
	x.names = slices.Sorted(maps.Keys(contents(t, store)))
	for _, name := range x.names {
		delete(x.old, name)
	}
	x.age = time.Since(begun)
	return x
}

// breakAndRepair damages a frame of a pack of a backup, and has it relocated.
func (x *rich) breakAndRepair(t *testing.T, r *Repo, id layers.ID, image []byte) {
	for _, name := range packsOf(t, x.store, id) {
		if !strings.HasPrefix(name, "p/") {
			continue
		}
		b, err := object.ReadAll(t.Context(), x.store, name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		b[headerSize+5] ^= 1
		if err := x.store.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
		same := func(context.Context, layers.ID) (Source, error) {
			return Source{Layers: []layers.Layer{&content{bytes: image}}}, nil
		}
		before := contents(t, x.store)
		if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Repair: true, Heal: same}); err != nil || report.Healed == 0 {
			t.Fatalf("repair: %v, %+v", err, report)
		}
		x.broken, x.moved = name, make(map[string]bool)
		for made := range contents(t, x.store) {
			x.moved[made] = strings.HasPrefix(made, "p/") && before[made] == nil
		}
		return
	}
	t.Fatal("no pack to repair")
}

// crash leaves what a host leaves that is killed in the middle of a backup.
func (x *rich) crash(t *testing.T, v *volume, parent layers.ID) {
	cut := &line{left: 2}
	r, err := Open(t.Context(), &objecttest.Hook{Store: x.store, Before: cut.before}, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.packTarget = 16 << 10
	fillNoise(t, v)
	_, err = r.Create(t.Context(), Job{
		ID: layers.NewID(), Volume: v.id, Parent: parent, Source: slowly(v.source(), 3*time.Minute), Changes: v.changes(),
		Checkpoint: func(Checkpoint) error { return nil },
	})
	if !errors.Is(err, errStopped) {
		t.Fatalf("a backup that is cut off: %v", err)
	}
}

// fillNoise fills a volume.
func fillNoise(t *testing.T, v *volume) {
	rnd := newRand(t)
	for i := range v.bytes {
		v.bytes[i] = byte(rnd.Uint32())
	}
	v.mark(0, int64(len(v.bytes)), layers.Data)
}

// An attack is what somebody put in the place of an object.
type attack struct {
	how   string
	put   []byte // nil: nothing, it is removed
	prune bool   // what pruning makes of it is looked at, too
}

// attacks yields what somebody who can write to the store, and has all that
// ever was in it, can put in the place of one object. Flips take turns: each
// eighth of every kind of object is flipped in one of them at least.
func (x *rich) attacks(t *testing.T, name string) func(func(attack) bool) {
	now, kind := contents(t, x.store), objectKindOf(name)
	same := slices.DeleteFunc(slices.Clone(x.names), func(n string) bool { return objectKindOf(n) != kind })
	turn, turns := slices.Index(same, name), min(len(same), 4)
	b := now[name]
	return func(yield func(attack) bool) {
		flips := 0
		for eighth := turn % turns; eighth < 8; eighth += turns {
			at := eighth * (len(b) - 1) / 7
			flipped := bytes.Clone(b)
			flipped[at] ^= 1 << (at % 8)
			if flips++; !yield(attack{fmt.Sprintf("flipped at %d", at), flipped, flips == 1}) {
				return
			}
		}
		for _, a := range []attack{
			{"cut", b[:len(b)/2], true}, {"missing", nil, true},
			{"cut at its end", b[:len(b)-1], false}, {"empty", []byte{}, false},
			{"twice", append(bytes.Clone(b), b...), false}, {"longer", append(bytes.Clone(b), 0), false},
		} {
			if !yield(a) {
				return
			}
		}
		swaps := 0
		for _, other := range append(slices.Clone(x.names), slices.Sorted(maps.Keys(x.old))...) {
			if swaps == 3 {
				return
			}
			object, ok := now[other]
			if !ok {
				object = x.old[other]
			}
			if other == name || objectKindOf(other) != kind || bytes.Equal(object, b) {
				continue
			}
			if swaps++; !yield(attack{"swapped for " + other, object, swaps == 1}) {
				return
			}
		}
	}
}

// A verdict is what a reader made of a store.
type verdict struct {
	denied   error // the repository does not open
	restored map[layers.ID]bool
	errs     []error // of lists, restores, and the audit
	audit    error
}

// read opens a store, lists, restores everything and audits. Wrong bytes, wrong
// words and errors that are not of damage are the test's.
func (x *rich) read(t *testing.T, what string, store object.Store) (v verdict) {
	v.restored = make(map[layers.ID]bool)
	damage := func(err error) bool {
		return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, fs.ErrNotExist)
	}
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		if v.denied = err; !damage(err) && !errors.Is(err, ErrKey) && !errors.Is(err, ErrNoRepository) {
			t.Errorf("%s: open: %v", what, err)
		}
		return v
	}
	defer r.Close()
	for b, err := range r.Backups(t.Context()) {
		w, known := x.backups[b.ID]
		w.Protected = b.Protected // which whoever can write to the store can change
		if w.Name == "renamed" && b.Name == "nightly" {
			w.Name, w.Updated, w.Caption = b.Name, w.Created, b.Caption // and he can take captions away
		}
		switch {
		case err != nil && !damage(err):
			t.Errorf("%s: list: %v", what, err)
		case err != nil:
			v.errs = append(v.errs, err)
		case known && fmt.Sprint(w) != fmt.Sprint(b):
			t.Errorf("%s: listed is %+v, want %+v", what, b, w)
		}
	}
	for id, image := range x.images {
		d := newDisk(len(image))
		err := r.Restore(t.Context(), id, d, RestoreOptions{})
		switch {
		case err == nil && !bytes.Equal(d.bytes, image):
			t.Errorf("%s: backup %s restores as something else", what, id)
		case err == nil:
			v.restored[id] = true
		case !damage(err):
			t.Errorf("%s: restore: %v", what, err)
		default:
			v.errs = append(v.errs, err)
		}
	}
	report, err := r.Audit(t.Context(), AuditOptions{Level: Deep})
	if v.audit = err; err != nil && !damage(err) {
		t.Errorf("%s: audit: %v", what, err)
	}
	for _, f := range report.Findings {
		v.errs = append(v.errs, f.Err)
	}
	return v
}

// names reports whether anything that was said of a store names an object.
func (v *verdict) names(name string) bool {
	for _, err := range append(v.errs, v.denied, v.audit) {
		if err != nil && (strings.Contains(err.Error(), name) || absentIs(err, name)) {
			return true
		}
	}
	return false
}

// prune lets two graces go by with a pruning in each. It may refuse for damage.
func (x *rich) prune(t *testing.T, what string, store object.Store) {
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		return
	}
	defer r.Close()
	for range 3 {
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: prune: %v", what, err)
		}
		time.Sleep(25 * time.Hour)
	}
}

// TestEveryObjectAttacked: whatever somebody does to any one object of any
// kind, all that restores is what was backed up; what does not is named; and
// pruning takes nothing away that could still be read before. // B15, B17
func TestEveryObjectAttacked(t *testing.T) {
	var x *rich
	synctest.Test(t, func(t *testing.T) { x = newRich(t) })
	later := func(what string, f func(t *testing.T)) {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(x.age)
				f(t)
			})
		})
	}
	kinds := make(map[string]int)
	for _, name := range x.names {
		kinds[objectKindOf(name)]++
	}
	for _, kind := range everyKind {
		if kinds[kind] == 0 {
			t.Errorf("no object of kind %q among %q", kind, x.names)
		}
	}
	later("none", func(t *testing.T) {
		if v := x.read(t, "nothing", x.store); v.denied != nil || len(v.errs) > 0 || v.audit != nil || len(v.restored) != len(x.images) {
			t.Fatalf("before any attack: %+v", v)
		}
	})
	tried := 0
	for _, name := range x.names {
		var needed bool
		later("need", func(t *testing.T) {
			store := x.store.Clone()
			store.Delete(t.Context(), name)
			v := x.read(t, name+" missing", store)
			needed = v.denied != nil || len(v.restored) < len(x.images)
			if kind := objectKindOf(name); needed && !v.names(name) && kind != "r" && kind != "k/" {
				t.Errorf("%s missing: nothing says so: %v", name, v.errs)
			}
		})
		root, _ := parseRoot(name)
		small := !strings.HasPrefix(name, "p/") && !strings.HasPrefix(name, "m/") && (root == rootName{} || x.images[root.backup] != nil)
		for a := range x.attacks(t, name) {
			tried++
			what := name + " " + a.how
			later("try", func(t *testing.T) {
				store := x.store.Clone()
				if a.put == nil {
					store.Delete(t.Context(), name)
				} else if err := store.Put(t.Context(), name, a.put); err != nil {
					t.Fatal(err)
				}
				before := x.read(t, what, store)
				if a.put != nil && (needed || small) && !before.names(name) {
					t.Errorf("%s: nothing names it: %v", what, before.errs)
				}
				if !a.prune {
					return
				}
				x.prune(t, what, store)
				after := x.read(t, what+", pruned", store)
				for id := range before.restored {
					if !after.restored[id] {
						t.Errorf("%s: backup %s is lost by pruning: %v", what, id, after.errs)
					}
				}
			})
		}
	}
	for name, b := range x.old {
		what := name + " put back"
		later("old", func(t *testing.T) {
			store := x.store.Clone()
			store.Put(t.Context(), name, b)
			before := x.read(t, what, store)
			x.prune(t, what, store)
			after := x.read(t, what+", pruned", store)
			if len(before.restored) < len(x.images) || len(after.restored) < len(x.images) {
				t.Errorf("%s: restored %d, then %d of %d backups", what, len(before.restored), len(after.restored), len(x.images))
			}
		})
	}
	t.Logf("%d attacks on %d objects: %v", tried, len(x.names), kinds)
}
