package e2e

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// Two daemons come to one target at once, back up at once, see each other's
// backups, and restore them. Neither's log has a secret. C2, C5
func TestTwoHostsAtOnce(t *testing.T) {
	testbed.Require(t, "nbdcopy")
	s := testbed.S3(t)
	target := fmt.Sprintf("s3://varve-hosts/%d?endpoint=%s", time.Now().UnixNano(), s.URL)
	dir := t.TempDir()
	var hosts [2]*daemon
	var images [2][]byte
	for i := range hosts {
		hosts[i] = startDaemon(t, words(s.Env())...)
		path := filepath.Join(dir, fmt.Sprint("image", i))
		images[i] = randomImage(t, path, 16*MiB)
		hosts[i].varve("volume", "create", fmt.Sprint("vol", i), "--size", "16M")
		client(t, "nbdcopy", path, hosts[i].uri(fmt.Sprint("vol", i)))
	}
	both := func(f func(i int, d *daemon) error) {
		t.Helper()
		var all sync.WaitGroup
		for i, d := range hosts {
			all.Go(func() {
				if err := f(i, d); err != nil {
					t.Errorf("host %d: %v", i, err)
				}
			})
		}
		all.Wait()
	}
	run := func(d *daemon, args ...string) error {
		_, errout, err := d.try(args...)
		if err != nil {
			return fmt.Errorf("varve %s: %w\n%s", strings.Join(args, " "), err, errout)
		}
		return nil
	}
	both(func(_ int, d *daemon) error {
		if run(d, "target", "add", "offsite", target) == nil {
			return nil
		}
		return run(d, "target", "add", "offsite", target) // the other was first by a hair, and says so
	})
	for n := range 2 {
		both(func(i int, d *daemon) error {
			return run(d, "backup", "create", fmt.Sprint("vol", i), "--name", fmt.Sprintf("host%d-%d", i, n))
		})
	}
	both(func(_ int, d *daemon) error { return run(d, "target", "sync", "offsite") })
	for i, d := range hosts {
		if got := strings.Fields(d.varve("backup", "list", "-o", "value", "-c", "Status")); strings.Join(got, " ") != "available available available available" {
			t.Errorf("host %d lists backups in %v, want four that are available", i, got)
		}
		other := 1 - i
		d.varve("backup", "restore", fmt.Sprintf("host%d-1", other), "--name", "restored")
		out := filepath.Join(dir, "out")
		client(t, "nbdcopy", d.uri("restored"), out)
		if !bytes.Equal(readFile(t, out), images[other]) {
			t.Errorf("host %d restored another image than host %d backed up", i, other)
		}
		if log := d.logged(); strings.Contains(log, passphrase) || strings.Contains(log, s.Env()["AWS_SECRET_ACCESS_KEY"]) {
			t.Errorf("the log of host %d has a secret", i)
		}
	}
}
