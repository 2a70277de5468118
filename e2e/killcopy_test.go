package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// TestKillCopies kills the daemon with SIGKILL at random moments of backups,
// restores, deletions, prunings and verifications, KILLS times, and starts it
// again: what was under way goes on to its end, every volume and backup has the
// state and the bytes that it should have, no temporary snapshot is left, and no
// object that nothing needs. A7, A8, B5, B9, B14, B15, B17
func TestKillCopies(t *testing.T) {
	testbed.Require(t, "nbdcopy", "qemu-io")
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		testKillCopies(t, "file://"+dir, dir)
	})
	t.Run("s3", func(t *testing.T) {
		s := testbed.S3(t)
		testKillCopies(t, "s3://varve-kill/host1?endpoint="+s.URL, "", words(s.Env())...)
	})
}

// A killing is a daemon that is killed while it copies.
type killing struct {
	t      *testing.T
	d      *daemon
	target string
	store  string // the target's folder, empty if it has none
	rnd    *rand.Rand
	dir    string // scratch
	image  []byte // of vol, now
	kept   map[string][]byte
	names  []string // of kept, oldest first
	packs  int64    // that should be there
	took   time.Duration
	made   int
}

const killSize = 80 * MiB

func testKillCopies(t *testing.T, target, store string, env ...string) {
	seed := newSeed(t)
	k := &killing{t: t, d: startDaemon(t, env...), target: target, store: store, rnd: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir(), kept: map[string][]byte{}}
	path := filepath.Join(k.dir, "image")
	k.image = randomImage(t, path, killSize)
	k.d.varve("volume", "create", "vol", "--size", strconv.Itoa(killSize))
	k.d.varve("volume", "create", "other", "--size", strconv.Itoa(killSize+16*MiB))
	client(t, "nbdcopy", path, k.d.uri("vol"))
	client(t, "nbdcopy", path, k.d.uri("other"))
	k.d.varve("target", "add", "offsite", target)
	begun := time.Now()
	k.d.varve("backup", "create", "vol", "--name", "first")
	k.took = time.Since(begun)
	k.add("first")
	k.packs-- // the volume's key
	acts := []func(){k.backup, k.restore, k.backup, k.overwrite, k.delete, k.prune, k.verify}
	kills := setting(t, "KILLS", len(acts))
	for life := range kills {
		acts[(life+int(seed%uint64(len(acts))))%len(acts)]()
		k.check()
	}
	k.d.stop()
	k.d.start()
	k.check()
	k.nothingLeft()
	t.Logf("%d kills", kills)
}

// strike begins an operation and kills the daemon at some moment of it; a new
// one then carries on.
func (k *killing) strike(args ...string) {
	k.t.Helper()
	k.strikeWithin(k.took, args...)
}

func (k *killing) strikeWithin(most time.Duration, args ...string) {
	k.t.Helper()
	k.d.varve(append(args, "--no-wait")...)
	moment := time.NewTimer(time.Duration(k.rnd.Int64N(int64(most))))
	<-moment.C
	k.d.kill()
	k.d.start()
	for _, id := range running(k.t, k.d) {
		if _, errout, err := k.d.try("operation", "show", id, "--wait"); err != nil {
			k.t.Fatalf("%s: the operation did not go on: %s", strings.Join(args, " "), errout)
		}
	}
}

func (k *killing) add(name string) {
	k.t.Helper()
	n, err := strconv.ParseInt(k.d.value("object_count", "backup", "show", name), 10, 64)
	if err != nil {
		k.t.Fatal(err)
	}
	k.packs += n - 1
	k.kept[name] = bytes.Clone(k.image)
	k.names = append(k.names, name)
}

func (k *killing) backup() {
	k.t.Helper()
	k.made++
	name := fmt.Sprintf("backup-%d", k.made)
	at := k.rnd.Int64N(killSize/MiB) * MiB
	pattern := byte(1 + k.rnd.IntN(255))
	client(k.t, "qemu-io", "-f", "raw", k.d.uri("vol"), "-c", fmt.Sprintf("write -P %d %d 64k", pattern, at), "-c", "flush")
	copy(k.image[at:], bytes.Repeat([]byte{pattern}, 64<<10))
	args := []string{"backup", "create", "vol", "--name", name, "--force"}
	if k.made%2 == 0 {
		args = append(args, "--incremental")
	}
	k.strike(args...)
	if got := k.d.value("status", "backup", "show", name); got != "available" {
		k.t.Fatalf("backup %s is %s", name, got)
	}
	k.add(name)
	k.d.varve("backup", "verify", name, "--deep")
	k.same(name, k.image, filepath.Join(k.dir, "bare"), func(out string) {
		k.d.varve("--target", k.target, "backup", "restore", name, out, "--force")
	})
}

func (k *killing) restore() {
	k.t.Helper()
	name := k.names[k.rnd.IntN(len(k.names))]
	k.strike("backup", "restore", name, "--name", "again")
	k.same("a new volume of "+name, k.kept[name], filepath.Join(k.dir, "out"), func(out string) { client(k.t, "nbdcopy", k.d.uri("again"), out) })
	k.d.varve("volume", "delete", "again")
}

func (k *killing) overwrite() {
	k.t.Helper()
	name := k.names[k.rnd.IntN(len(k.names))]
	k.strike("backup", "restore", name, "other", "--force")
	want := append(bytes.Clone(k.kept[name]), make([]byte, 16*MiB)...)
	k.same("a volume overwritten by "+name, want, filepath.Join(k.dir, "out"), func(out string) { client(k.t, "nbdcopy", k.d.uri("other"), out) })
}

func (k *killing) delete() {
	k.t.Helper()
	if len(k.names) < 2 {
		return
	}
	i := k.rnd.IntN(len(k.names))
	name := k.names[i]
	k.strikeWithin(k.took/10, "backup", "delete", name, "--force")
	delete(k.kept, name)
	k.names = append(k.names[:i:i], k.names[i+1:]...)
}

// prune is cut off, and then done until there is no more to do: all backups are
// whole.
func (k *killing) prune() {
	k.t.Helper()
	k.nothingLeft()
	k.strikeWithin(k.took/10, "target", "prune", "offsite", "--grace", "1ms")
	await(k.t, "pruning finds nothing more", func() bool {
		k.d.varve("target", "prune", "offsite", "--grace", "1ms")
		var plan struct {
			Freed     int64 `json:"freed_objects"`
			Condemned int64 `json:"condemned_objects"`
			Young     int64 `json:"young_objects"`
		}
		out := k.d.varve("target", "prune", "offsite", "--grace", "1ms", "--dry-run", "-o", "json")
		if err := json.Unmarshal([]byte(out), &plan); err != nil {
			k.t.Fatalf("%v: %s", err, out)
		}
		return plan.Freed+plan.Condemned+plan.Young == 0
	})
	k.d.varve("target", "verify", "offsite", "--mode", "deep")
	if k.store != "" {
		data, leaves := k.count()
		k.packs = data + leaves
	}
}

func (k *killing) verify() {
	k.t.Helper()
	k.strike("target", "verify", "offsite", "--mode", "deep")
}

// same compares what write makes of a file with the bytes wanted.
func (k *killing) same(what string, want []byte, path string, write func(out string)) {
	k.t.Helper()
	write(path)
	if !bytes.Equal(readFile(k.t, path), want) {
		k.t.Fatalf("%s differs from what was backed up", what)
	}
}

// check looks at every state.
func (k *killing) check() {
	k.t.Helper()
	for _, volume := range []string{"vol", "other"} {
		if got := k.d.value("status", "volume", "show", volume); got != "available" {
			k.t.Errorf("%s is %s", volume, got)
		}
	}
	want := map[string]bool{}
	for _, name := range k.names {
		want[name+" available"] = true
	}
	for line := range strings.Lines(k.d.varve("backup", "list", "-o", "value", "-c", "Name", "-c", "Status")) {
		if line = strings.TrimSpace(line); !want[line] {
			k.t.Errorf("there is %q among the backups", line)
		}
		delete(want, line)
	}
	if len(want) > 0 {
		k.t.Errorf("these backups are missing: %v", want)
	}
	if got := k.d.varve("snapshot", "list", "--all", "-o", "value", "-c", "Name"); got != "" {
		k.t.Errorf("snapshots are left: %q", got)
	}
	if k.t.Failed() {
		k.t.FailNow()
	}
}

// nothingLeft counts the packs in a folder. A commit that was cut off may leave
// its pack of leaves to pruning.
func (k *killing) nothingLeft() {
	k.t.Helper()
	if k.store == "" {
		return
	}
	data, leaves := k.count()
	if extra := data + leaves - k.packs; extra < 0 || extra > leaves {
		k.t.Errorf("%d packs of data and %d of leaves are there, the backups added %d", data, leaves, k.packs)
	}
}

// count returns how many packs the folder has.
func (k *killing) count() (data, leaves int64) {
	k.t.Helper()
	err := filepath.WalkDir(k.store, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			switch rel, _ := filepath.Rel(k.store, path); rel[0] {
			case 'p':
				data++
			case 'm':
				leaves++
			}
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		k.t.Fatal(err)
	}
	return data, leaves
}
