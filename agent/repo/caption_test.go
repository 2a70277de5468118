package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// captioned makes a backup in a store, opened by two hosts.
func captioned(t *testing.T) (store *object.Mem, one, two *Repo, b Backup) {
	t.Helper()
	store = object.NewMem()
	one = testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("data"))
	b, err := one.Create(t.Context(), Job{
		ID: layers.NewID(), Volume: v.id, Source: v.source(),
		Name: "first", Description: "as it was made", Meta: map[string]string{"k": "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	two, err = Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { two.Close() })
	return store, one, two, b
}

// renamed is an edit of the name alone.
func renamed(to string) func(*Caption) error {
	return func(c *Caption) error { c.Name = to; return nil }
}

// texts is what a listing says of the only backup.
func texts(t *testing.T, r *Repo) string {
	t.Helper()
	said := ""
	for b, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		said += fmt.Sprintf("%s|%s|%v", b.Name, b.Description, b.Meta)
	}
	return said
}

// captionNames are the objects of captions.
func captionNames(t *testing.T, store object.Store) (names []string) {
	t.Helper()
	for info, err := range store.List(t.Context(), "v/") {
		if err != nil {
			t.Fatal(err)
		}
		if kindInVolume(info.Name) == "n" {
			names = append(names, info.Name)
		}
	}
	return names
}

// What a backup is called is changed for all hosts, and one object says so; who
// knows the backup under its caption is not told again. // C2
func TestRecaption(t *testing.T) {
	store, one, two, b := captioned(t)
	ctx := t.Context()
	if got := texts(t, two); got != "first|as it was made|map[k:v]" {
		t.Fatalf("made: %s", got)
	}
	for n, name := range []string{"second", "third"} {
		got, err := one.Recaption(ctx, b.ID, renamed(name))
		if err != nil || got.Name != name || got.Description != "as it was made" || got.Caption == "" {
			t.Fatalf("renamed: %+v, %v", got, err)
		}
		for host, r := range map[string]*Repo{"one": one, "two": two} {
			if said := texts(t, r); said != name+"|as it was made|map[k:v]" {
				t.Errorf("%s lists %s", host, said)
			}
			if same, err := r.Backup(ctx, b.ID); err != nil || same.Name != name || same.Caption != got.Caption {
				t.Errorf("%s has %+v, %v", host, same, err)
			}
			for known := range r.NewBackups(ctx, func(id layers.ID, caption string) bool { return caption == got.Caption }) {
				if known.Name != "" || known.Caption != got.Caption {
					t.Errorf("%s reads what is known: %+v", host, known)
				}
			}
		}
		if names := captionNames(t, store); len(names) != 1 {
			t.Errorf("after change %d there are %q", n+1, names)
		}
	}
	_, err := two.Recaption(ctx, b.ID, func(c *Caption) error {
		c.Description, c.Meta = "", nil
		return nil
	})
	if got := texts(t, one); err != nil || got != "third||map[]" {
		t.Errorf("emptied: %s, %v", got, err)
	}
	refused := errors.New("refused")
	if _, err := two.Recaption(ctx, b.ID, func(*Caption) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("an edit that refuses: %v", err)
	}
	before := captionNames(t, store)
	if _, err := two.Recaption(ctx, b.ID, renamed("third")); err != nil || captionNames(t, store)[0] != before[0] {
		t.Errorf("a change that changes nothing wrote something, or failed: %v", err)
	}
	if err := one.Delete(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Repo{one, two} {
		if _, err := r.Recaption(ctx, b.ID, renamed("x")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("rename what is deleted: %v", err)
		}
	}
	if _, err := one.Recaption(ctx, layers.NewID(), renamed("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rename what never was: %v", err)
	}
}

// Two hosts that rename at the same instant give the same number; both see the
// same one then, and the next change removes both. // C5
func TestRecaptionAtOnce(t *testing.T) {
	store, one, two, b := captioned(t)
	_, err := one.Recaption(t.Context(), b.ID, func(c *Caption) error {
		c.Name = "of one"
		_, err := two.Recaption(t.Context(), b.ID, renamed("of two"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := captionNames(t, store)
	if len(names) != 2 {
		t.Fatalf("captions %q, want two", names)
	}
	said := texts(t, one)
	if other := texts(t, two); said != other {
		t.Errorf("one lists %s, two %s", said, other)
	}
	if _, err := two.Recaption(t.Context(), b.ID, renamed("after both")); err != nil {
		t.Fatal(err)
	}
	if left := captionNames(t, store); len(left) != 1 || !strings.Contains(left[0], "-0000000000000002-") {
		t.Errorf("captions %q, want one with number 2", left)
	}
}

// A caption that is damaged, or gone, hides no backup: what its root says holds,
// and an audit names the object. // C3, B15
func TestDamagedCaption(t *testing.T) {
	store, one, two, b := captioned(t)
	if _, err := one.Recaption(t.Context(), b.ID, renamed("second")); err != nil {
		t.Fatal(err)
	}
	name := captionNames(t, store)[0]
	whole, err := object.ReadAll(t.Context(), store, name, maxBody)
	if err != nil {
		t.Fatal(err)
	}
	original := "first|as it was made|map[k:v]"
	for at := range whole {
		flipped := append([]byte{}, whole...)
		flipped[at] ^= 0x10
		store.Put(t.Context(), name, flipped)
		if got := texts(t, two); got != original {
			t.Fatalf("with byte %d flipped: %s", at, got)
		}
	}
	if report, err := two.Audit(t.Context(), AuditOptions{Level: Map}); !errors.Is(err, ErrCorrupt) || len(report.Findings) != 1 || !strings.Contains(report.Findings[0].Err.Error(), name) {
		t.Errorf("an audit says %+v, %v; want %s named", report.Findings, err, name)
	}
	if _, err := two.Recaption(t.Context(), b.ID, renamed("mended")); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, one); got != "mended|as it was made|map[k:v]" || len(captionNames(t, store)) != 1 {
		t.Errorf("after another change: %s, %q", got, captionNames(t, store))
	}
	store.Delete(t.Context(), captionNames(t, store)...)
	if got := texts(t, one); got != original {
		t.Errorf("with the caption gone: %s", got)
	}
}

// Of captions that stand side by side, since the older one could not be removed,
// the one with the highest number counts, however they are listed.
func TestCaptionsSideBySide(t *testing.T) {
	store, one, two, b := captioned(t)
	kept := map[string][]byte{}
	for _, to := range []string{"second", "third", "fourth"} {
		if _, err := one.Recaption(t.Context(), b.ID, renamed(to)); err != nil {
			t.Fatal(err)
		}
		name := captionNames(t, store)[0]
		whole, err := object.ReadAll(t.Context(), store, name, maxBody)
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = whole
	}
	for name, whole := range kept {
		if err := store.Put(t.Context(), name, whole); err != nil {
			t.Fatal(err)
		}
	}
	for host, r := range map[string]*Repo{"one": one, "two": two} {
		if got := texts(t, r); !strings.HasPrefix(got, "fourth|") {
			t.Errorf("host %s lists %s", host, got)
		}
	}
	if _, err := two.Recaption(t.Context(), b.ID, renamed("fifth")); err != nil {
		t.Fatal(err)
	}
	if left := captionNames(t, store); len(left) != 1 || texts(t, one) != "fifth|as it was made|map[k:v]" {
		t.Errorf("after one more change %q are left, and one lists %s", left, texts(t, one))
	}
}

// A listing that lags shows nobody an old name who knew the new one, and an old
// caption whose object is gone leads to the newer one.
func TestCaptionOfALaggingListing(t *testing.T) {
	store, one, two, b := captioned(t)
	ctx := t.Context()
	if _, err := one.Recaption(ctx, b.ID, renamed("second")); err != nil {
		t.Fatal(err)
	}
	old := captionNames(t, store)[0]
	if got := texts(t, two); !strings.HasPrefix(got, "second|") {
		t.Fatalf("two lists %s", got)
	}
	if _, err := one.Recaption(ctx, b.ID, renamed("third")); err != nil {
		t.Fatal(err)
	}
	// Two knows the old one, which is gone, and finds the new one by itself.
	if got, err := two.Backup(ctx, b.ID); err != nil || got.Name != "third" {
		t.Errorf("two has %q, %v; want third", got.Name, err)
	}
	// A listing that has the old one yet does not bring its name back.
	n, _ := parseVolumeName(old)
	caption, ok := n.caption()
	if !ok {
		t.Fatalf("%s is no caption", old)
	}
	two.captions.note(caption)
	if got := texts(t, two); !strings.HasPrefix(got, "third|") {
		t.Errorf("two lists %s after a lagging listing", got)
	}
}

// Pruning removes captions with the backup that they are of, and no others. // B17
func TestPruneRemovesCaptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, one, _, b := captioned(t)
		v := newVolume(1 << 20)
		v.write(0, []byte("other"))
		other, err := v.backup(t.Context(), one, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []layers.ID{b.ID, other.ID} {
			if _, err := one.Recaption(t.Context(), id, renamed("new")); err != nil {
				t.Fatal(err)
			}
		}
		if err := one.Delete(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(25 * time.Hour)
			prunes(t, one, PruneOptions{})
		}
		if left := captionNames(t, store); len(left) != 1 || !strings.Contains(left[0], other.ID.String()) {
			t.Errorf("captions %q are left, want that of backup %s", left, other.ID)
		}
	})
}

// A caption of one backup in the place of another's is none.
func TestCaptionBindsItsPlace(t *testing.T) {
	name := captionName{fixedID, otherID, 3, objectID{1}}
	c := &caption{name, Caption{"n", "d", map[string]string{"k": ""}}, fixedTime, "host"}
	if _, err := parseCaption(c.body(), name); err != nil {
		t.Fatal(err)
	}
	for what, wrong := range map[string]captionName{
		"volume": {otherID, otherID, 3, objectID{1}}, "backup": {fixedID, fixedID, 3, objectID{1}}, "number": {fixedID, otherID, 4, objectID{1}},
	} {
		if _, err := parseCaption(c.body(), wrong); err == nil {
			t.Errorf("a caption of another %s is read", what)
		}
	}
	f := maps.Clone(c.body())
	f[bodyMeta] = []byte{1, 'b', 0, 1, 'a', 0}
	if _, err := parseCaption(f, name); err == nil {
		t.Error("properties out of order are read")
	}
}
