package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// targetDeeds are what TestKillDuring does with a target, by name. Its backup
// "gone" is of a volume of that name that is deleted, and holds 4s.
func targetDeeds(t *testing.T, d *daemon) map[string]deed {
	nothing := func() error { return nil }
	run := func(args ...string) error {
		if _, errout, err := d.try(args...); err != nil {
			return fmt.Errorf("varve %q: %w\n%s", args, err, errout)
		}
		return nil
	}
	dir := t.TempDir()
	url := "file://" + dir
	made, id := false, ""
	target := func() error { // once
		if made {
			return nil
		}
		made = true
		if err := errors.Join(run("target", "add", "far", url), run("volume", "create", "gone", "--size", "16M")); err != nil {
			return err
		}
		fillVolume(t, d, "gone", 4)
		id = d.value("id", "volume", "show", "gone")
		return errors.Join(run("backup", "create", "gone", "--name", "gone"), run("volume", "delete", "gone"))
	}
	// secret writes the n-th passphrase into a file. The first is passphrase.
	secrets, uses := t.TempDir(), 0
	secret := func(n int) string {
		path, text := filepath.Join(secrets, fmt.Sprint(n)), passphrase
		if n > 0 {
			text = fmt.Sprintf("passphrase number %d", n)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		return path
	}
	opens := func(n int) error { return run("--target", url, "--passphrase-file", secret(n), "backup", "list") }
	labels := func() (string, error) {
		out, errout, err := d.try("target", "key", "list", "far", "-o", "value", "-c", "Label", "-c", "In Use")
		if err != nil {
			return "", fmt.Errorf("target key list: %w\n%s", err, errout)
		}
		return out, nil
	}
	label := func(n int) string { return fmt.Sprintf("label-%d-", n) }
	rotate := func() []string {
		return []string{"target", "key", "rotate", "far", "--new-passphrase-file", secret(uses), "--label", label(uses)}
	}
	// toldPassphrases returns how many passphrases open the target: one, and those
	// that the list of keys tells of as not removed.
	toldPassphrases := func() (int, error) {
		out, errout, err := d.try("target", "key", "list", "far", "-o", "value", "-c", "Kind", "-c", "Status")
		if err != nil {
			return 0, fmt.Errorf("target key list: %w\n%s", err, errout)
		}
		all := strings.Count(out, "passphrase ")
		if told := strings.Count(out, "passphrase not removed\n"); told != all-1 {
			return 0, fmt.Errorf("%d passphrases open the target, and %d are told of as not removed:\n%s", all, told, out)
		}
		return all, nil
	}
	return map[string]deed{
		"target key add": {
			prepare: func() error { uses++; return target() },
			args: func() []string {
				return []string{"target", "key", "add", "far", "--new-passphrase-file", secret(uses), "--label", label(uses)}
			},
			done: func() (bool, error) {
				out, err := labels()
				if err != nil || !strings.Contains(out, label(uses)) {
					return false, errors.Join(err, opens(0))
				}
				return true, errors.Join(opens(0), opens(uses))
			},
			undo: func() error { return run("target", "key", "remove", "far", label(uses)) },
		},
		"target key rotate": {
			prepare: func() error { uses++; return target() },
			args:    rotate,
			// Between the two it has both keys, and either opens it; the daemon has
			// one of them, and says that the old one should be gone.
			done: func() (bool, error) {
				out, err := labels()
				if err == nil {
					_, err = toldPassphrases()
				}
				if err != nil {
					return false, err
				}
				if !strings.Contains(out, label(uses)+" True") {
					return false, opens(uses - 1)
				}
				return true, errors.Join(opens(uses), run("target", "sync", "far"))
			},
			undo: func() error {
				// Of a rotation that was cut off, the same command leaves one key.
				if n, err := toldPassphrases(); err != nil || n == 1 {
					return err
				}
				if err := run(rotate()...); err != nil {
					return err
				}
				if n, err := toldPassphrases(); err != nil || n != 1 {
					return fmt.Errorf("%d passphrases open the target after a rotation that was asked for twice; %v", n, err)
				}
				return opens(uses)
			},
		},
		"adopt": {
			prepare: target,
			args:    func() []string { return []string{"backup", "restore", "gone", "--adopt", "--name", "adopted"} },
			done: func() (bool, error) {
				if err := awaitOperations(t, d); err != nil {
					return false, err
				}
				out, _, err := d.try("volume", "show", "adopted", "-o", "value", "-c", "id", "-c", "status")
				if err != nil {
					return false, nil
				}
				if out != id+"\navailable\n" {
					return true, fmt.Errorf("the adopted volume is %q, want the id %s and available", out, id)
				}
				return true, holds(t, d, "adopted", 4)
			},
			undo: func() error { return run("volume", "delete", "adopted") },
		},
		"target verify repair": {
			prepare: func() error {
				if err := errors.Join(target(), run("backup", "create", "vol", "--name", "vol")); err != nil {
					return err
				}
				return flipNewest(filepath.Join(dir, "p"))
			},
			args: func() []string { return []string{"target", "verify", "far", "--mode", "deep", "--repair"} },
			done: func() (bool, error) {
				if err := awaitOperations(t, d); err != nil {
					return false, err
				}
				_, _, err := d.try("target", "verify", "far", "--mode", "deep")
				return err == nil, nil
			},
			undo: func() error {
				dest := filepath.Join(t.TempDir(), "image")
				if err := run("--target", url, "backup", "restore", "vol", dest); err != nil {
					return err
				}
				if b := readFile(t, dest); strings.Trim(string(b[:MiB]), "\x02") != "" {
					return errors.New("the repaired backup has another content")
				}
				return run("backup", "delete", "vol")
			},
		},
		"prune": {
			prepare: func() error {
				if err := errors.Join(target(), run("backup", "create", "vol", "--name", "old")); err != nil {
					return err
				}
				for i := range 4 { // small packs, to be merged
					fillVolume(t, d, "vol", byte(5+i))
					if err := run("backup", "create", "vol", "--name", fmt.Sprint("vol", i), "--incremental"); err != nil {
						return err
					}
				}
				fillVolume(t, d, "vol", 2)
				return errors.Join(run("backup", "create", "vol", "--name", "vol", "--incremental"), run("backup", "delete", "old", "--force"))
			},
			args: func() []string {
				return []string{"target", "prune", "far", "--grace", "1ms", "--repack-below", "95"}
			},
			ends: true, // it takes several runs
			done: func() (bool, error) {
				if err := awaitOperations(t, d); err != nil {
					return false, err
				}
				for range 4 {
					if err := run("target", "prune", "far", "--grace", "1ms", "--repack-below", "95"); err != nil {
						return false, err
					}
				}
				return true, run("target", "verify", "far", "--mode", "deep")
			},
			undo: func() error {
				dest := filepath.Join(t.TempDir(), "image")
				if err := run("--target", url, "backup", "restore", "vol", dest); err != nil {
					return err
				}
				if b := readFile(t, dest); strings.Trim(string(b[:MiB]), "\x02") != "" {
					return errors.New("a backup has another content after pruning")
				}
				return run("backup", "delete", "vol", "vol3", "vol2", "vol1", "vol0")
			},
		},
		"backup delete": {
			prepare: func() error { return errors.Join(target(), run("backup", "create", "vol", "--name", "vol")) },
			args:    func() []string { return []string{"backup", "delete", "vol"} },
			done: func() (bool, error) {
				if err := awaitOperations(t, d); err != nil {
					return false, err
				}
				_, _, err := d.try("backup", "show", "vol")
				return err != nil, errors.Join(run("target", "sync", "far"), run("backup", "verify", "gone", "--deep"))
			},
			undo: nothing,
		},
	}
}

// awaitOperations waits until whatever goes on has ended.
func awaitOperations(t *testing.T, d *daemon) error {
	t.Helper()
	for _, op := range running(t, d) {
		d.try("operation", "show", op, "--wait") // what came of it is looked at
	}
	return nil
}

// flipNewest changes a byte in the middle of the newest file below a folder.
func flipNewest(dir string) error {
	newest, when, size := "", time.Time{}, int64(0)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.ModTime().After(when) {
			newest, when, size = path, info.ModTime(), info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(newest, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		return err
	}
	b[0] ^= 0x40
	_, err = f.WriteAt(b, size/2)
	return err
}
