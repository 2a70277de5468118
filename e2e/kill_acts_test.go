package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// deed is something that a daemon is asked for and killed during.
type deed struct {
	prepare func() error
	args    func() []string
	// done says whether it happened, or did not; anything between is an error.
	done func() (bool, error)
	// undo takes it back, where it happened.
	undo func() error
	ends bool // with the daemon, also if it was answered
}

// TestKillDuring kills the daemon with SIGKILL at a random moment of a mount, the
// deletion of a volume, the addition of a target, a clone, a revert, and of what
// is done to a target: a key is added or rotated, a volume adopted, damage
// repaired, small packs merged, a backup deleted. After the next start it
// happened or not, as a whole, and it did if it was answered; nothing is in a
// status between two others, no folder, secret or mount is left over, and the
// same can be asked for again. V6, V7, S5, B9, B14, B15, B17
func TestKillDuring(t *testing.T) {
	testbed.Require(t, "qemu-io", "fusermount3")
	testbed.RequireRoot(t)
	for _, name := range []string{
		"mount", "volume delete", "target add", "volume clone", "volume revert",
		"target key add", "target key rotate", "adopt", "target verify repair", "prune", "backup delete",
	} {
		t.Run(name, func(t *testing.T) { testKillDuring(t, name) })
	}
}

func testKillDuring(t *testing.T, name string) {
	seed := newSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	d := startDaemon(t)
	d.varve("volume", "create", "vol", "--size", "16M")
	fillVolume(t, d, "vol", 1)
	d.varve("snapshot", "create", "vol", "--name", "one")
	fillVolume(t, d, "vol", 2)
	todo, is := deeds(t, d)[name]
	if !is {
		todo = targetDeeds(t, d)[name]
	}
	var took time.Duration
	happened := 0
	kills := max(setting(t, "KILLS", 10)/5, 2)
	for i := range kills + 1 {
		if err := todo.prepare(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		answer := make(chan error, 1)
		var ended time.Duration
		go func() {
			_, _, err := d.try(todo.args()...)
			ended = time.Since(began)
			answer <- err
		}()
		var answered error
		if i == 0 { // to see how long it takes
			answered = <-answer
		} else {
			<-time.After(time.Duration(r.Int64N(int64(took))))
			d.kill()
			answered = <-answer
			d.start()
		}
		if answered == nil && (i == 0 || ended < took) {
			took = ended
		}
		done, err := todo.done()
		if answered == nil && !done && !todo.ends {
			err = errors.Join(err, fmt.Errorf("it was answered, and did not happen"))
		}
		if err = errors.Join(err, checkSound(d), checkSecrets(d)); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		if !done {
			if _, errout, err := d.try(todo.args()...); err != nil {
				t.Fatalf("kill %d: it did not happen, and cannot be done now: %v\n%s", i, err, errout)
			}
			if done, err := todo.done(); !done || err != nil {
				t.Fatalf("kill %d: done again: %v, %v", i, done, err)
			}
		} else if i > 0 {
			happened++
		}
		if err := todo.undo(); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
	}
	t.Logf("%d kills, after %d of them it had happened", kills, happened)
}

// deeds are what TestKillDuring does, by name. The volume "vol" holds 2s, its
// snapshot "one" holds 1s.
func deeds(t *testing.T, d *daemon) map[string]deed {
	nothing := func() error { return nil }
	run := func(args ...string) error {
		if _, errout, err := d.try(args...); err != nil {
			return fmt.Errorf("varve %q: %w\n%s", args, err, errout)
		}
		return nil
	}
	there := func(name string) (bool, error) {
		volumes, err := listVolumes(d)
		return slices.ContainsFunc(volumes, func(v listedVolume) bool { return v.Name == name }), err
	}
	dir, target := filepath.Join(mountFolder(t), "browse"), t.TempDir()
	return map[string]deed{
		"mount": {
			ends:    true,
			prepare: func() error { return os.MkdirAll(dir, 0o700) },
			args:    func() []string { return []string{"mount", dir} },
			done: func() (bool, error) {
				b, err := os.ReadFile(filepath.Join(dir, "vol", "one", "disk.raw"))
				if err != nil {
					return false, nil
				}
				if strings.Trim(string(b[:MiB]), "\x01") != "" {
					return false, errors.New("the mounted snapshot has another content")
				}
				return true, nil
			},
			undo: func() error {
				if err := run("unmount", dir); err != nil {
					return err
				}
				return os.Remove(dir)
			},
		},
		"volume delete": {
			prepare: func() error {
				if err := run("volume", "create", "gone", "--size", "16M"); err != nil {
					return err
				}
				fillVolume(t, d, "gone", 3)
				return run("snapshot", "create", "gone", "--name", "s")
			},
			args: func() []string { return []string{"volume", "delete", "gone"} },
			done: func() (bool, error) {
				is, err := there("gone")
				if is && err == nil {
					err = errors.Join(holds(t, d, "gone", 3), holds(t, d, "gone@s", 3))
				}
				return !is, err
			},
			undo: nothing,
		},
		"target add": {
			prepare: nothing,
			args:    func() []string { return []string{"target", "add", "offsite", "file://" + target} },
			done: func() (bool, error) {
				out, errout, err := d.try("target", "list", "-o", "value", "-c", "Name")
				if err != nil {
					return false, fmt.Errorf("target list: %w\n%s", err, errout)
				}
				if strings.TrimSpace(out) == "" {
					return false, nil
				}
				return true, run("target", "sync", "offsite")
			},
			undo: func() error { return run("target", "remove", "offsite") },
		},
		"volume clone": {
			prepare: nothing,
			args:    func() []string { return []string{"volume", "clone", "vol@one", "copy"} },
			done: func() (bool, error) {
				is, err := there("copy")
				if is && err == nil {
					err = holds(t, d, "copy", 1)
				}
				return is, errors.Join(err, holds(t, d, "vol", 2))
			},
			undo: func() error { return run("volume", "delete", "copy") },
		},
		"volume revert": {
			prepare: nothing,
			args:    func() []string { return []string{"volume", "revert", "vol", "one"} },
			done: func() (bool, error) {
				listed, err := listSnapshots(d)
				if err != nil {
					return false, err
				}
				safety := ""
				for _, name := range listed {
					if strings.HasPrefix(name, safetyPrefix) {
						safety = name
					}
				}
				if safety == "" {
					return false, holds(t, d, "vol", 2)
				}
				return true, errors.Join(holds(t, d, "vol", 1), holds(t, d, "vol@"+safety, 2))
			},
			undo: func() error {
				fillVolume(t, d, "vol", 2)
				listed, err := listSnapshots(d)
				for _, name := range listed {
					if strings.HasPrefix(name, safetyPrefix) {
						err = errors.Join(err, run("snapshot", "delete", "vol@"+name))
					}
				}
				return errors.Join(err, awaitIdle(d, "vol"))
			},
		},
	}
}

// fillVolume fills the first MiB of a volume with a byte.
func fillVolume(t *testing.T, d *daemon, name string, b byte) {
	t.Helper()
	client(t, "qemu-io", "-f", "raw", d.uri(name), "-c", fmt.Sprintf("write -P %d 0 1M", b), "-c", "flush")
	if err := awaitIdle(d, name); err != nil {
		t.Fatal(err)
	}
}

// holds returns an error unless the first MiB of an export is full of a byte.
func holds(t *testing.T, d *daemon, export string, b byte) error {
	out, err := tryClient(t, "qemu-io", "-r", "-f", "raw", d.uri(export), "-c", fmt.Sprintf("read -P %d 0 1M", b))
	if err == nil && (strings.Contains(out, "failed") || !strings.Contains(out, "read 1048576/1048576")) {
		err = errors.New(out)
	}
	if err != nil {
		return fmt.Errorf("%s does not hold %d: %w", export, b, err)
	}
	name, _, _ := strings.Cut(export, "@")
	return awaitIdle(d, name)
}

// checkSecrets looks that there are no credentials of a target that is not
// there.
func checkSecrets(d *daemon) error {
	out, errout, err := d.try("target", "list", "-o", "json")
	if err != nil {
		return fmt.Errorf("target list: %w\n%s", err, errout)
	}
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(d.state, "secrets"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		known := slices.ContainsFunc(list, func(t struct{ ID string }) bool { return strings.HasPrefix(e.Name(), t.ID) })
		if !known {
			return fmt.Errorf("there is the secret %s of a target that is not there", e.Name())
		}
	}
	return nil
}
