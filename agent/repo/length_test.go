package repo

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/layers"
)

// lengths are who says that an object has a byte too many, a byte too few, or
// none: docs/format.md 2.1. The readers are those of voices. Nobody speaks of
// what nobody reads.
var lengths = []struct{ object, longer, cut, empty string }{
	{"head", "open", "open", "open"},
	{"key slot in use", "open", "open", "open"},
	{"key slot", "audit deep", "audit deep", "audit deep"},
	{"volume key", "list restore verify audit deep", "list restore verify audit deep", "list restore verify audit deep"}, // known has it
	{"root", "restore known verify audit deep", "restore known verify audit deep", "list restore known verify audit deep"},
	{"root of a deleted backup", "", "", ""},
	{"pack of data", "audit deep", "verify audit deep", "restore known verify audit deep"},
	{"pack of a repair", "deep", "verify deep", "restore known verify audit deep"}, // in no inventory
	{"pack of leaves", "audit deep", "verify audit deep", "restore known verify audit deep"},
	{"session", "audit deep", "audit deep", "audit deep"},
	{"tombstone", "audit deep", "audit deep", "audit deep"},
	{"hold", "audit deep", "audit deep", "audit deep"},
	{"claim", "audit deep", "audit deep", "audit deep"},
	{"condemned list", "audit deep", "audit deep", "audit deep"},
	{"relocation", "audit deep", "audit deep", "audit deep"},
	{"claim of who makes the repository", "", "", ""}, // is empty, and counts by its name
}

// objectOf is what lengths calls an object; empty for those of which others of
// their kind are tried.
func (x *rich) objectOf(name string) string {
	kind := objectKindOf(name)
	id, _ := packOf(name)
	switch live := x.isLive(id.id.session()); {
	case name == slotName(x.repository):
		return "key slot in use"
	case kind == "b":
		if root, _ := parseRoot(name); x.images[root.backup] == nil {
			return "root of a deleted backup"
		}
	case x.moved[name]:
		return "pack of a repair"
	case kind == "p/" && live && name != x.broken && !strings.HasSuffix(name, "00000000"): // first packs may hold nothing but leaves
		return "pack of data"
	case kind == "m/" && live:
		return "pack of leaves"
	}
	return map[string]string{
		"repo": "head", "k/": "key slot", "s/": "session", "g/": "condemned list", "k": "volume key", "b": "root",
		"d": "tombstone", "h": "hold", "r": "relocation", "c": "claim", "in": "claim of who makes the repository",
	}[kind]
}

// isLive reports whether a session is that of a backup that is there.
func (x *rich) isLive(s sessionID) bool {
	for backup := range x.images {
		if sessionOf(backup) == s {
			return true
		}
	}
	return false
}

// voices are the readers of a store whose errors name an object, in this order:
// open; list, which lists the backups; restore; known, which restores in a
// repository that was open, and had listed, before the object changed; verify;
// audit, at the level Map; and deep, an audit at that level. Whoever restores
// gets what was backed up.
func (x *rich) voices(t *testing.T, name string, b []byte) string {
	store, said := x.store.Clone(), make(map[string]bool)
	note := func(who string, err error) {
		v := verdict{denied: err}
		if v.names(name) {
			said[who] = true
		} else if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of %d bytes: %s: %v", name, len(b), who, err)
		}
	}
	restore := func(who string, r *Repo) {
		for id, image := range x.images {
			d := newDisk(len(image))
			err := r.Restore(t.Context(), id, d, RestoreOptions{})
			if note(who, err); err == nil && !bytes.Equal(d.bytes, image) {
				t.Errorf("%s of %d bytes: %s: backup %s is something else", name, len(b), who, id)
			}
		}
	}
	list := func(who string, r *Repo) {
		for _, err := range r.Backups(t.Context()) {
			note(who, err)
		}
	}
	before := must(Open(t.Context(), store, Key{Passphrase: secret}))(t)
	defer before.Close()
	list("known", before)
	if err := store.Put(t.Context(), name, b); err != nil {
		t.Fatal(err)
	}
	restore("known", before)
	if r, err := Open(t.Context(), store, Key{Passphrase: secret}); err != nil {
		note("open", err)
	} else {
		defer r.Close()
		list("list", r)
		restore("restore", r)
		for id := range x.images {
			_, err := r.Verify(t.Context(), id, VerifyOptions{Level: Deep})
			note("verify", err)
		}
		for who, level := range map[string]Level{"audit": Map, "deep": Deep} {
			report, err := r.Audit(t.Context(), AuditOptions{Level: level})
			note(who, err)
			for _, f := range report.Findings {
				note(who, f.Err)
			}
		}
	}
	var all []string
	for _, who := range []string{"open", "list", "restore", "known", "verify", "audit", "deep"} {
		if said[who] {
			all = append(all, who)
		}
	}
	return strings.Join(all, " ")
}

// TestLengthOfObjects: an object that has a byte too many, a byte too few, or
// none at all is named by those who read it, and deceives nobody. // B15
func TestLengthOfObjects(t *testing.T) {
	var x *rich
	synctest.Test(t, func(t *testing.T) {
		x = newRich(t)
		x.store.Put(t.Context(), initRoot+layers.NewID().String(), nil)
	})
	now := contents(t, x.store)
	found := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(now)) {
		found[x.objectOf(name)] = name
	}
	delete(found, "")
	for _, l := range lengths {
		name, b := found[l.object], now[found[l.object]]
		if name == "" {
			t.Errorf("there is no %s", l.object)
			continue
		}
		for _, c := range []struct {
			what string
			b    []byte
			want string
		}{{"longer", append(bytes.Clone(b), 0), l.longer}, {"cut", b[:max(len(b)-1, 0)], l.cut}, {"empty", []byte{}, l.empty}} {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(x.age)
				if got := x.voices(t, name, c.b); got != c.want {
					t.Errorf("%s, %s: %q say so, want %q (%s)", l.object, c.what, got, c.want, name)
				}
			})
		}
		delete(found, l.object)
	}
	for object, name := range found {
		t.Errorf("%s, %s, was not looked at", object, name)
	}
}
