package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"varve/catalog"
	"varve/layers"
)

// V10 for the whole state folder: a second daemon is refused at once.
func TestSecondDaemonIsToldWhoIsTheFirst(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	_, err := Start(t.Context(), w.config(dir))
	wantError(t, err, InUse, fmt.Sprintf("pid %d", os.Getpid()), dir, "--state")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	w.start(dir)
}

func TestStateFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	newWorld(t).start(dir)
	for _, name := range []string{"", "volumes", "secrets", "catalog"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("state/%s: %v, %v, want mode 0700", name, info.Mode(), err)
		}
	}
}

func TestDamagedCatalogSaysWhatToDo(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.start(dir).Close()
	if err := os.WriteFile(filepath.Join(dir, "catalog", "MANIFEST"), []byte("not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), w.config(dir))
	wantError(t, err, Unavailable, filepath.Join(dir, "catalog"), "varve catalog rebuild")
	if _, err := Start(t.Context(), w.config(dir)); ReasonOf(err) == InUse {
		t.Errorf("the failed start has kept the lock: %v", err)
	}
}

func TestNamesThatCannotBeUsed(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	for _, name := range []string{
		"", ".", "..", "a/b", "a@b", "a\nb", "\x00", "\xff", "\ufffd\ufffd", " a", "a ", "tab\t", "\u202e", "\u200b",
		strings.Repeat("x", 256), layers.NewID().String(),
	} {
		_, err := a.CreateVolume(t.Context(), NewVolume{Name: name, Size: mib})
		wantError(t, err, Invalid, "volume", "name")
	}
	for _, name := range []string{"a", "a b", "-", "übergröße", "数据", "a.b:c", strings.Repeat("x", 255)} {
		if _, err := a.CreateVolume(t.Context(), NewVolume{Name: name, Size: mib}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestResolveByNameAndID(t *testing.T) {
	one, two, three := layers.NewID(), layers.NewID(), layers.NewID()
	records := []named{{one, "a", ""}, {two, "b", "the old one"}, {three, "b", ""}}
	of := func(n named) named { return n }
	for _, test := range []struct {
		ref    string
		want   layers.ID
		reason Reason
		says   []string
	}{
		{"a", one, "", nil},
		{three.String(), three, "", nil},
		{strings.ToUpper(two.String()), two, "", nil},
		{"b", layers.ID{}, Ambiguous, []string{two.String(), three.String(), "the old one"}},
		{"c", layers.ID{}, NotFound, []string{`"c"`, "list"}},
		{layers.NewID().String(), layers.ID{}, NotFound, nil},
		{"", layers.ID{}, Invalid, nil},
	} {
		got, err := resolve("thing", test.ref, records, of)
		if got.id != test.want {
			t.Errorf("%q: got %s, want %s", test.ref, got.id, test.want)
		}
		if test.reason == "" && err != nil {
			t.Errorf("%q: %v", test.ref, err)
		}
		if test.reason != "" {
			wantError(t, err, test.reason, test.says...)
		}
	}
}

func TestReasonsOfErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want Reason
	}{
		{fail(Corrupt, "x"), Corrupt},
		{fmt.Errorf("y: %w", fail(InUse, "x")), InUse},
		{errors.Join(errors.New("z"), fail(Invalid, "x")), Invalid},
		{fmt.Errorf("a: %w", fs.ErrNotExist), NotFound},
		{fs.ErrPermission, Denied},
		{context.Canceled, Stopped},
		{context.DeadlineExceeded, Unavailable},
		{errors.New("b"), Internal},
	} {
		if got := ReasonOf(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
	if !errors.Is(fail(NotFound, "x"), fs.ErrNotExist) || errors.Is(fail(Invalid, "x"), fs.ErrNotExist) {
		t.Error("an Error is fs.ErrNotExist if and only if its reason is NotFound")
	}
	if cause := errors.New("c"); !errors.Is(fail(Invalid, "x: %w", cause), cause) {
		t.Error("an Error hides its cause")
	}
}

func TestReasonsAreShortened(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("x", maxReason)} {
		if got := shorten(text); got != text {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
	}
	if got := shorten(strings.Repeat("ü", maxReason)); len(got) > maxReason+len("…") || !utf8.ValidString(got) {
		t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}

// Only so many ended operations are remembered; those that run are never
// forgotten.
func TestHistoryIsBounded(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	var first, last layers.ID
	for range 3 {
		err := a.update(func(tx *catalog.Tx) error {
			for range maxHistory / 2 {
				last = layers.NewID()
				if first.IsZero() {
					first = last
				}
				if err := catalog.Operations.Put(tx, catalog.Operation{ID: last, State: catalog.Succeeded}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	a = w.start(dir)
	operations := must(a.Operations(t.Context()))(t)
	if len(operations) != maxHistory || operations[0].ID != last {
		t.Errorf("%d operations, newest %s, want %d, %s", len(operations), operations[0].ID, maxHistory, last)
	}
	_, err := a.Operation(t.Context(), first)
	wantError(t, err, NotFound, first.String())
	wantError(t, a.CancelOperation(t.Context(), last), Conflict, "ended")
	for range a.WatchOperation(t.Context(), first) {
		t.Error("a forgotten operation is watched")
	}
}
