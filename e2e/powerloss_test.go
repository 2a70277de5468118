package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An outage is a daemon with its state folder on a disk whose power will fail.
type outage struct {
	t       *testing.T
	disk    *disk
	history *history
	guest   *guest // nil: none
}

// newOutage starts a daemon on a new disk, with a guest if withGuest is set.
// The guest's file system is of the disk's kind.
func newOutage(t *testing.T, program, kind string, seed uint64, withGuest bool) *outage {
	t.Helper()
	o := &outage{t: t, disk: newDisk(t, kind, 1024*MiB)}
	d := newDaemon(t, o.disk.path())
	d.program = program
	d.start()
	o.history = newHistory(t, d, o.disk.folder, seed, false, o.disk.now)
	if withGuest {
		o.guest = &guest{t: t, kind: kind, now: o.disk.now, scratch: o.disk.folder}
	}
	return o
}

// run lets clients work, and does acts operations on the volume meanwhile. Then
// it ends all and takes the disk away, but not its log.
func (o *outage) run(seed uint64, acts int) {
	o.t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	h := o.history
	endGuest := func() {}
	if o.guest != nil {
		endGuest = o.guest.start(h.d, seed)
	}
	if err := h.write(); err != nil {
		o.t.Fatal(err)
	}
	for range acts {
		want := h.promised() + 10
		if err := h.act(r); err != nil {
			o.t.Fatal(err)
		}
		if err := h.checkSnapshots(h.d, o.disk.now()); err != nil {
			o.t.Fatalf("without any power loss: %v", err)
		}
		await(o.t, "the writer goes on", func() bool { return h.promised() >= want })
	}
	h.rest()
	endGuest()
	h.d.stop()
	o.disk.detach()
}

// cuts chooses power losses: some anywhere, some right after a promise, when
// the drive owes most.
func (o *outage) cuts(seed uint64, n int) []cut {
	r := rand.New(rand.NewPCG(seed, 2))
	promises := o.history.promises()
	start, end := o.history.sizes[0].end, o.disk.now()
	var cuts []cut
	for i := range n {
		c := cut{at: start + r.IntN(end-start+1), loss: loss(r.IntN(3)), seed: [2]uint64{seed, uint64(i)}}
		if i%2 == 0 {
			c.at, c.loss = promises[r.IntN(len(promises))], []loss{loseAll, loseSome}[r.IntN(2)]
		}
		cuts = append(cuts, c)
	}
	return cuts
}

// check starts Varve on what a power loss left, and returns what is wrong with
// it.
func (o *outage) check(c cut) error {
	o.t.Helper()
	image, dir := o.disk.crash(c), filepath.Join(o.disk.folder, "crashed")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		o.t.Fatal(err)
	}
	if _, err := tryClient(o.t, "mount", "-o", "loop", image, dir); err != nil {
		return err
	}
	defer client(o.t, "umount", dir)
	d := &daemon{t: o.t, program: program, state: dir, log: filepath.Join(o.disk.folder, "crashed.log")}
	defer os.Remove(d.log)
	if err := d.launch(); err != nil {
		return err
	}
	defer d.stop()
	err := o.history.check(d, c.at)
	if o.guest != nil {
		err = errors.Join(err, o.guest.check(d, c.at))
	}
	if err != nil {
		return fmt.Errorf("%w\nlog of the daemon:\n%s", err, d.logged())
	}
	return nil
}

// TestPowerLoss cuts the power of the disk below the state folder at many
// moments, while clients write and flush and snapshots come and go. Whatever
// the drive's cache kept: what a flush or FUA acknowledged is there, other
// blocks are old or new, acknowledged snapshots are exact, and a guest's file
// system is clean with all files that it had synced. V9, S1, S3, V4
func TestPowerLoss(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			eachSeed(t, func(t *testing.T, seed uint64) {
				o := newOutage(t, program, kind, seed, true)
				o.run(seed, len(cycle))
				cuts := o.cuts(seed, 8)
				for _, c := range cuts {
					if err := o.check(c); err != nil {
						t.Errorf("%v: %v", c, err)
					}
				}
				t.Logf("%d cuts in a log of %d", len(cuts), o.disk.now())
				// The check must see a drive that lies: one that answers flushes, and
				// keeps nothing after the volume was made.
				for _, c := range cuts[:2] {
					c.at, c.loss, c.lies = o.disk.now(), loseAll, o.history.sizes[0].end
					if err := o.check(c); err == nil {
						t.Errorf("%v: the drive ignored all flushes, and the check finds nothing wrong", c)
					} else {
						t.Logf("a drive that lies is found out: %.300s", err)
					}
				}
			})
		})
	}
}

// TestPowerLossWithoutSync is the negative control of TestPowerLoss: a Varve
// that was built without the sync of a flush does not pass.
func TestPowerLossWithoutSync(t *testing.T) {
	o := newOutage(t, buildWithoutSync(t), "ext4", 1, false)
	o.run(1, 3)
	found := 0
	cuts := o.cuts(1, 6)
	for _, c := range cuts {
		c.loss = loseAll
		if err := o.check(c); err != nil {
			found++
			t.Logf("%v: %.300s", c, err)
		}
	}
	if found == 0 {
		t.Errorf("%d cuts found nothing wrong with a Varve that does not sync", len(cuts))
	}
}

// buildWithoutSync builds the program so that a flush writes its record to the
// journal and does not sync it.
func buildWithoutSync(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source, err := filepath.Abs("../layers/flush.go")
	if err != nil {
		t.Fatal(err)
	}
	code := string(readFile(t, source))
	const call = "return v.sync(j.f)"
	if strings.Count(code, call) != 1 {
		t.Fatalf("%s does not have %q once: bring this test up to date", source, call)
	}
	changed, overlay, out := filepath.Join(dir, "flush.go"), filepath.Join(dir, "overlay"), filepath.Join(dir, "varve")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(changed, []byte(strings.Replace(code, call, "return nil", 1)), 0o600), os.WriteFile(overlay, replace, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", out, "../cmd/varve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, said)
	}
	return out
}
