package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// TestTwoHosts lets two daemons share a target, of each kind, through a day of
// what operators do and what goes wrong. After each step both list what the
// target has, and what is available restores byte for byte, on the other host
// than the one that made it. ROUNDS times in all.
//
// C1, C2, C3, C4, C5, A7, B1, B12, B15, B17
func TestTwoHosts(t *testing.T) {
	testbed.Require(t, "nbdcopy", "qemu-io", "curl")
	for name, share := range map[string]func(*testing.T) sharing{"directory": sharedFolder, "swift": sharedSwift, "s3": sharedS3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, share(t))
			for range setting(t, "ROUNDS", 1) {
				p.backUpAtOnce()
				p.pruneBesideBackups()
				p.deleteOnOne()
				p.killOneWhileTheOtherPrunes()
				p.rebuildOneWhileTheOtherWorks()
				p.damageOneEntry()
				p.targetAway()
			}
		})
	}
}

// A pair is two hosts with one target. Host 0 hears of the other by target sync
// alone, host 1 by its poll.
type pair struct {
	t      *testing.T
	target sharing
	hosts  [2]*daemon
	volume [2]string
	image  [2][]byte         // of the volumes, now
	kept   map[string][]byte // what the backups that are there hold, by name
	made   int
	random *rand.ChaCha8
	dir    string
}

const pairSize = 12 * MiB

var pollFlags = [2][]string{{"--poll-interval", "0"}, {"--poll-interval", "1s"}}

func newPair(t *testing.T, s sharing) *pair {
	p := &pair{t: t, target: s, kept: map[string][]byte{}, random: rand.NewChaCha8([32]byte{9}), dir: t.TempDir()}
	for i := range p.hosts {
		state, err := os.MkdirTemp("", "varve-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(state) })
		d := newDaemon(t, state, s.env[i]...)
		d.start(pollFlags[i]...)
		p.hosts[i], p.volume[i], p.image[i] = d, fmt.Sprint("vol", i), make([]byte, pairSize)
		d.varve("target", "add", "offsite", s.url[i])
		d.varve("volume", "create", p.volume[i], "--size", fmt.Sprint(pairSize))
		p.write(i, 0, pairSize)
	}
	return p
}

// write puts noise into the volume of a host.
func (p *pair) write(host int, off, n int64) {
	p.t.Helper()
	path := filepath.Join(p.dir, "noise")
	part := p.image[host][off : off+n]
	p.random.Read(part) // never fails
	if err := os.WriteFile(path, part, 0o600); err != nil {
		p.t.Fatal(err)
	}
	client(p.t, "qemu-io", "-f", "raw", p.hosts[host].uri(p.volume[host]), "-c", fmt.Sprintf("write -q -s %s %d %d", path, off, n), "-c", "flush")
}

// begin begins a backup on a host and returns its name, and what waits for its
// end. It is recorded before it is carried out (C1).
func (p *pair) begin(host int, flags ...string) (name string, end func() error) {
	p.t.Helper()
	p.made++
	name = fmt.Sprintf("host%d-%d", host, p.made)
	d := p.hosts[host]
	d.varve(append([]string{"backup", "create", p.volume[host], "--name", name, "--force", "--no-wait"}, flags...)...)
	if got := p.status(host, name); got != "creating" && got != "available" {
		p.t.Errorf("a backup that was begun is in %s", got)
	}
	p.kept[name] = bytes.Clone(p.image[host])
	return name, func() error { return p.settle(host) }
}

// settle waits until nothing goes on on a host. That all went well is the error.
func (p *pair) settle(host int) error {
	for _, id := range running(p.t, p.hosts[host]) {
		if _, errout, err := p.hosts[host].try("operation", "show", id, "--wait"); err != nil {
			return fmt.Errorf("host %d: %w: %s", host, err, errout)
		}
	}
	return nil
}

// backUp makes a backup on a host.
func (p *pair) backUp(host int, flags ...string) (name string) {
	p.t.Helper()
	name, end := p.begin(host, flags...)
	if err := end(); err != nil {
		p.t.Fatal(err)
	}
	return name
}

// delete deletes a backup on a host.
func (p *pair) delete(host int, name string) {
	p.t.Helper()
	p.hosts[host].varve("backup", "delete", name, "--force")
	delete(p.kept, name)
}

func (p *pair) status(host int, name string) string {
	p.t.Helper()
	return p.hosts[host].value("status", "backup", "show", name)
}

// list is what a host lists: names and statuses, sorted.
func (p *pair) list(host int) []string {
	p.t.Helper()
	lines := strings.Fields(strings.ReplaceAll(p.hosts[host].varve("backup", "list", "-o", "value", "-c", "Name", "-c", "Status"), " ", ":"))
	slices.Sort(lines)
	return lines
}

// wanted is what both have to list, when nothing goes on.
func (p *pair) wanted() []string {
	var lines []string
	for name := range p.kept {
		lines = append(lines, name+":available")
	}
	slices.Sort(lines)
	return lines
}

// agree makes sure that both list what there is: host 0 after a sync, host 1
// after a poll. C2
func (p *pair) agree() {
	p.t.Helper()
	p.hosts[0].varve("target", "sync", "offsite")
	want := p.wanted()
	if got := p.list(0); !slices.Equal(got, want) {
		p.t.Fatalf("after target sync host 0 lists %q, want %q", got, want)
	}
	await(p.t, fmt.Sprintf("a poll makes host 1 list %q", want), func() bool { return slices.Equal(p.list(1), want) })
}

// restores restores a backup on a host and compares each byte.
func (p *pair) restores(host int, name string) {
	p.t.Helper()
	d, out := p.hosts[host], filepath.Join(p.dir, "out")
	d.varve("backup", "restore", name, "--name", "again")
	client(p.t, "nbdcopy", d.uri("again"), out)
	if !bytes.Equal(readFile(p.t, out), p.kept[name]) {
		p.t.Fatalf("%s, restored on host %d, is not what was backed up", name, host)
	}
	d.varve("volume", "delete", "again")
}

// crosswise restores the newest backup of each host on the other one, and has
// all of the target read by both.
func (p *pair) crosswise() {
	p.t.Helper()
	for host := range p.hosts {
		p.restores(1-host, p.newest(host))
	}
	p.hosts[p.made%2].varve("target", "verify", "offsite", "--mode", "deep")
}

// newest is the newest backup of a host that is there.
func (p *pair) newest(host int) string {
	p.t.Helper()
	for n := p.made; n > 0; n-- {
		if name := fmt.Sprintf("host%d-%d", host, n); p.kept[name] != nil {
			return name
		}
	}
	p.t.Fatalf("host %d has no backup", host)
	return ""
}

// backUpAtOnce: each host backs up its volume, at the same time, then what
// changed; each lists both and restores the other's. C2, C5
func (p *pair) backUpAtOnce() {
	p.t.Helper()
	var theirs string // the newest of host 1
	for _, flags := range [][]string{nil, {"--incremental"}} {
		var ends [2]func() error
		for i := range p.hosts {
			theirs, ends[i] = p.begin(i, flags...)
		}
		for _, end := range ends {
			if err := end(); err != nil {
				p.t.Fatal(err)
			}
		}
		for i := range p.hosts {
			p.write(i, 5*MiB, 64<<10)
		}
	}
	if got := p.list(0); slices.Contains(got, theirs+":available") {
		p.t.Errorf("host 0 lists %q before it has read the target's list", got)
	}
	p.agree()
	p.crosswise()
}

// pruneBesideBackups: host 1 prunes again and again while host 0 backs up. Where
// the store's clock can be moved, what was deleted is old enough to go, and goes.
// C5
func (p *pair) pruneBesideBackups() {
	p.t.Helper()
	p.delete(0, p.backUp(0))
	for range 2 { // its packs are old enough to be condemned, then to go
		p.prune(1)
		if p.target.age != nil {
			p.target.age(30 * time.Hour)
		}
	}
	freed := 0
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		for range 3 {
			freed += p.prune(1, "--repack-below", "95")
		}
	})
	for n := range int64(3) {
		p.write(0, n*2*MiB, 256<<10)
		p.backUp(0, "--incremental")
	}
	both.Wait()
	if p.target.age != nil && freed == 0 {
		p.t.Errorf("nothing of a backup that was deleted 30 hours ago went")
	}
	p.agree()
	p.crosswise()
}

// prune prunes on a host and returns how many objects went.
func (p *pair) prune(host int, flags ...string) (freed int) {
	out, errout, err := p.hosts[host].try(append([]string{"target", "prune", "offsite", "-o", "json"}, flags...)...)
	var told struct {
		Freed int `json:"freed_objects"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &told)
	}
	if err != nil {
		p.t.Errorf("prune on host %d: %v\n%s%s", host, err, out, errout)
	}
	return told.Freed
}

// deleteOnOne: what one host deletes is gone from the other's list. C2
func (p *pair) deleteOnOne() {
	p.t.Helper()
	for host := range p.hosts {
		p.write(host, MiB, 4096)
		p.delete(host, p.backUp(host, "--incremental"))
	}
	p.delete(1, p.newest(0)) // also by the one that did not make it
	p.agree()
}

// killOneWhileTheOtherPrunes: kill -9 in the midst of a backup, beside a pruning
// of the other host. Started again, the killed one goes on. A7, C5
func (p *pair) killOneWhileTheOtherPrunes() {
	p.t.Helper()
	for host := range p.hosts {
		d, other := p.hosts[host], p.hosts[1-host]
		d.varve("target", "set", "offsite", "--max-upload", "2M") // so it takes seconds
		p.write(host, 0, pairSize)
		name, end := p.begin(host)
		await(p.t, "the backup is in its midst", func() bool {
			ids := running(p.t, d)
			return len(ids) == 0 || d.value("done_bytes", "operation", "show", ids[0]) != "0"
		})
		other.varve("target", "prune", "offsite", "--no-wait")
		d.kill()
		if err := p.settle(1 - host); err != nil {
			p.t.Fatal(err)
		}
		d.start(pollFlags[host]...)
		p.prune(1 - host)
		d.varve("target", "set", "offsite", "--max-upload", "none")
		if err := end(); err != nil {
			p.t.Fatalf("%s did not go on: %v", name, err)
		}
	}
	p.agree()
	p.crosswise()
}

// rebuildOneWhileTheOtherWorks: a host loses its catalog, and makes it anew while
// the other backs up and prunes. C4
func (p *pair) rebuildOneWhileTheOtherWorks() {
	p.t.Helper()
	for host := range p.hosts {
		d := p.hosts[host]
		d.stop()
		if err := os.RemoveAll(filepath.Join(d.state, "catalog")); err != nil {
			p.t.Fatal(err)
		}
		p.write(1-host, 3*MiB, 128<<10)
		before := len(p.kept)
		_, end := p.begin(1-host, "--incremental")
		got := d.value("backups", "catalog", "rebuild")
		if got != fmt.Sprint(before) && got != fmt.Sprint(before+1) {
			p.t.Errorf("the rebuilt catalog of host %d has %s backups, the target %d", host, got, before)
		}
		if err := end(); err != nil {
			p.t.Fatal(err)
		}
		p.prune(1 - host)
		d.start(pollFlags[host]...)
		p.agree()
		p.write(host, 7*MiB, 4096)
		name := p.backUp(host, "--incremental")
		if got := d.value("is_incremental", "backup", "show", name); got != "True" {
			p.t.Errorf("after the rebuild an incremental backup of host %d is one: %s", host, got)
		}
	}
	p.agree()
	p.crosswise()
}

// damageOneEntry: garbage in the place of one entry. Both show that one in error
// and list and restore the others; it can be deleted. C3, B15, B17
func (p *pair) damageOneEntry() {
	p.t.Helper()
	a := p.hosts[0]
	a.varve("volume", "create", "victim", "--size", "1M")
	a.varve("backup", "create", "victim", "--name", "damaged")
	id := a.value("id", "backup", "show", "damaged")
	root := fmt.Sprintf("v/%s/b/%016x-%016x-%s", a.value("id", "volume", "show", "victim"), 1, 1, id)
	p.hosts[1].varve("target", "sync", "offsite")
	p.target.put(root, []byte("this is no backup"))
	for i, d := range p.hosts {
		await(p.t, fmt.Sprintf("host %d shows a damaged backup in error", i), func() bool {
			d.varve("target", "sync", "offsite") // a poll may be just mirroring what it read before
			return p.status(i, "damaged") == "error"
		})
		want := append([]string{"damaged:error"}, p.wanted()...)
		if got := d.value("fail_reason", "backup", "show", id); !strings.Contains(got, root) {
			p.t.Errorf("host %d does not name the damaged object %s: %s", i, root, got)
		}
		if got := p.list(i); !slices.Equal(got, want) {
			p.t.Errorf("beside a damaged backup host %d lists %q, want %q", i, got, want)
		}
	}
	p.restores(0, p.newest(1))
	p.restores(1, p.newest(0))
	p.hosts[1].varve("backup", "delete", "damaged")
	a.varve("volume", "delete", "victim")
	p.agree()
}

// targetAway: without its target host 1 lists and shows what it knew. When the
// target is back it learns what the other did meanwhile. C2, B12
func (p *pair) targetAway() {
	p.t.Helper()
	b, want := p.hosts[1], p.wanted()
	p.target.away()
	if got := p.list(1); !slices.Equal(got, want) {
		p.t.Errorf("without the target host 1 lists %q, want %q", got, want)
	}
	if got := p.status(1, p.newest(0)); got != "available" {
		p.t.Errorf("without the target a backup of the other host is %s", got)
	}
	b.varve("volume", "list")
	p.target.back()
	p.write(0, 9*MiB, 4096)
	p.backUp(0, "--incremental")
	p.agree()
	p.crosswise()
}
