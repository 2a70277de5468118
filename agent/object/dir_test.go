package object_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
)

func createDir(t *testing.T, path string) object.Store {
	t.Helper()
	s, err := object.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDirOpensAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	first := createDir(t, path)
	if err := first.Put(t.Context(), "p/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	opened, err := object.Dir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []object.Store{opened, createDir(t, path)} {
		if got, err := object.ReadAll(t.Context(), s, "p/a", 10); err != nil || string(got) != "x" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

// A folder that is not ours is never written to: it may be a mount point
// without its file system, or somebody's home.
func TestDirRefusesOtherFolders(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	full := filepath.Join(base, "full")
	for _, err := range []error{
		os.WriteFile(file, nil, 0o600),
		os.Mkdir(full, 0o700),
		os.WriteFile(filepath.Join(full, "letter.txt"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		open func(string) (object.Store, error)
		path string
		hint string
	}{
		{"missing", object.Dir, filepath.Join(base, "missing"), "does not exist"},
		{"empty", object.Dir, t.TempDir(), "mounted?"},
		{"a file", object.Dir, file, "not a folder"},
		{"full", object.Dir, full, "not a Varve target"},
		{"create in full", object.CreateDir, full, "letter.txt"},
		{"create over a file", object.CreateDir, file, "not a directory"},
		{"create below missing", object.CreateDir, filepath.Join(base, "x/y"), "mkdir -p"},
	} {
		_, err := c.open(c.path)
		if err == nil || !strings.Contains(err.Error(), c.hint) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: got %v, want an error that names the folder and says %q", c.name, err, c.hint)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the error is fs.ErrNotExist, as if an object were missing: %v", c.name, err)
		}
	}
	if entries, err := os.ReadDir(full); err != nil || len(entries) != 1 {
		t.Errorf("the refused folder has changed: %v, %v", entries, err)
	}
}

// After the file system is unmounted the path is an empty folder. Nothing may
// be written there, and nothing may look as if it had never existed.
func TestDirUnmountedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mnt")
	s := createDir(t, path)
	if err := s.Put(t.Context(), "p/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"missing", "empty"} {
		if state == "empty" {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		_, getErr := s.Get(t.Context(), "p/a", make([]byte, 1), 0)
		var listErr error
		for _, listErr = range s.List(t.Context(), "") {
		}
		for op, err := range map[string]error{
			"Put": s.Put(t.Context(), "p/b", []byte("y")), "Get": getErr, "List": listErr, "Delete": s.Delete(t.Context(), "p/a"),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mounted?") {
				t.Errorf("%s with the folder %s: got %v", op, state, err)
			}
		}
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
		t.Errorf("the empty mount point was written to: %v, %v", entries, err)
	}
}

// Another target in the folder's place is not taken for the one that was there;
// that one is, when it comes back, also as a copy.
func TestDirReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "target")
	s := createDir(t, path)
	if err := s.Put(t.Context(), "p/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	createDir(t, path+".other")
	for _, names := range [][2]string{{path, path + ".away"}, {path + ".other", path}} {
		if err := os.Rename(names[0], names[1]); err != nil {
			t.Fatal(err)
		}
	}
	_, getErr := s.Get(t.Context(), "p/a", make([]byte, 1), 0)
	var listErr error
	for _, listErr = range s.List(t.Context(), "") {
	}
	for op, err := range map[string]error{
		"Put": s.Put(t.Context(), "p/b", []byte("y")), "Get": getErr, "List": listErr, "Delete": s.Delete(t.Context(), "p/a"),
	} {
		if !object.Away(err) || !strings.Contains(err.Error(), "another target") {
			t.Errorf("%s in another target: got %v", op, err)
		}
	}
	if _, err := os.Stat(filepath.Join(path, "p")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other target was written to: %v", err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(path, os.DirFS(path+".away")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "p/b", []byte("y")); err != nil {
		t.Errorf("Put in a copy of the target: %v", err)
	}
}

// A folder that does not take a file which was just made for it is one that
// somebody moves: what writes there may go on later.
func TestDirMovedDuringPut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "target")
	s := createDir(t, path)
	if err := os.Symlink("gone", filepath.Join(path, "p")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "p/a", []byte("x")); !object.Away(err) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Leftovers of a crashed Put are no objects, and go when they are old.
func TestDirLeftovers(t *testing.T) {
	path := t.TempDir()
	s := createDir(t, path)
	staging := filepath.Join(path, "VARVE-TMP")
	for name, age := range map[string]time.Duration{"OLD": 25 * time.Hour, "NEW": time.Hour} {
		file := filepath.Join(staging, name)
		if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	for info, err := range s.List(t.Context(), "") {
		t.Errorf("an empty store lists %v, %v", info, err)
	}
	if _, err := object.Dir(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(staging, "OLD")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old leftover is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(staging, "NEW")); err != nil {
		t.Errorf("what another host may be writing has gone: %v", err)
	}
}

// A Put that ends early leaves the object as it was, and nothing beside it.
func TestDirPutInterrupted(t *testing.T) {
	path := t.TempDir()
	s := createDir(t, path)
	old := objecttest.Bytes(1, 1000)
	if err := s.Put(t.Context(), "p/a", old); err != nil {
		t.Fatal(err)
	}
	ctx := &endsAfter{Context: t.Context(), checks: 3}
	if err := s.Put(ctx, "p/a", objecttest.Bytes(2, 8<<20)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if got, err := object.ReadAll(t.Context(), s, "p/a", 1<<20); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the object has changed to %d bytes, %v", len(got), err)
	}
	if entries, err := os.ReadDir(filepath.Join(path, "VARVE-TMP")); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// endsAfter is a context that ends when it has been asked some times.
type endsAfter struct {
	context.Context
	checks int
}

func (c *endsAfter) Err() error {
	c.checks--
	if c.checks < 0 {
		return context.Canceled
	}
	return nil
}

// Folders that somebody tidied away are made again.
func TestDirFolderRemoved(t *testing.T) {
	path := t.TempDir()
	s := createDir(t, path)
	for range 2 {
		if err := s.Put(t.Context(), "p/q/a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		for _, folder := range []string{"p", "VARVE-TMP"} {
			if err := os.RemoveAll(filepath.Join(path, folder)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Get(t.Context(), "p/q/a", make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Files that no Put has made are not listed.
func TestDirForeignFiles(t *testing.T) {
	path := t.TempDir()
	s := createDir(t, path)
	if err := s.Put(t.Context(), "p/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README", "p/.nfs0000_1", "p/b.PART", "lost+found"} {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(path, "p/link")); err != nil {
		t.Fatal(err)
	}
	var names []string
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	if strings.Join(names, " ") != "p/a" {
		t.Errorf("got %q, want only p/a", names)
	}
}
