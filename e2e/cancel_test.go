package e2e

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"varve/e2e/testbed"
)

// TestCancel makes a backup while the target answers nothing: everything else
// goes on, the backup can be canceled, and leaves nothing behind; so does one
// whose daemon is stopped. B19, C1, A6
func TestCancel(t *testing.T) {
	testbed.Require(t, "nbdcopy", "qemu-io")
	s := testbed.S3(t)
	proxy := testbed.NewProxy(t, s.URL)
	d := startDaemon(t, words(s.Env())...)
	path := filepath.Join(t.TempDir(), "image")
	image := randomImage(t, path, 16*MiB)
	d.varve("volume", "create", "vol", "--size", "16M")
	client(t, "nbdcopy", path, d.uri("vol"))
	d.varve("target", "add", "offsite", "s3://varve-cancel/host1?endpoint=http://"+proxy.Address)
	d.varve("backup", "create", "vol", "--name", "before")

	proxy.Hang()
	operation := beginBackup(t, d, "stuck")
	if got := d.value("status", "volume", "show", "vol"); got != "backing-up" {
		t.Errorf("while the target hangs the volume is %s, want backing-up", got)
	}
	client(t, "qemu-io", "-f", "raw", d.uri("vol"), "-c", "write -P 9 1M 64k", "-c", "flush")
	copy(image[MiB:], bytes.Repeat([]byte{9}, 64<<10))
	d.varve("operation", "cancel", operation)
	if _, errout, err := d.try("operation", "show", operation, "--wait"); err == nil {
		t.Errorf("the canceled operation succeeded: %s", errout)
	}
	wantOnly(t, d, "before")

	// The daemon does not wait for what hangs when it is told to stop.
	beginBackup(t, d, "cut")
	d.stop()
	proxy.Heal()
	d.start()
	// The next daemon goes on with it. A7
	for _, id := range running(t, d) {
		d.varve("operation", "show", id, "--wait")
	}
	if got := d.value("status", "backup", "show", "cut"); got != "available" {
		t.Errorf("the backup that was cut off is in %s, want available", got)
	}
	d.varve("backup", "delete", "cut")
	wantOnly(t, d, "before")

	d.varve("backup", "create", "vol", "--name", "after", "--incremental")
	d.varve("backup", "verify", "after", "--deep")
	out := filepath.Join(t.TempDir(), "out")
	d.varve("backup", "restore", "after", "--name", "again")
	client(t, "nbdcopy", d.uri("again"), out)
	if !bytes.Equal(readFile(t, out), image) {
		t.Error("the backup made after the cancel differs from the volume")
	}
}

// beginBackup begins a backup and returns the operation's id.
func beginBackup(t *testing.T, d *daemon, name string) string {
	t.Helper()
	d.varve("backup", "create", "vol", "--name", name, "--force", "--no-wait")
	ids := running(t, d)
	if len(ids) == 0 {
		t.Fatal("no operation runs")
	}
	return ids[0]
}

// running returns the ids of the operations that run, newest first.
func running(t *testing.T, d *daemon) (ids []string) {
	t.Helper()
	var all []struct{ ID, State string }
	list := d.varve("operation", "list", "-o", "json")
	if err := json.Unmarshal([]byte(list), &all); err != nil {
		t.Fatalf("%v: %s", err, list)
	}
	for _, o := range all {
		if o.State == "running" {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// wantOnly fails unless the volume is available, has no snapshot, and the only
// backup is of that name.
func wantOnly(t *testing.T, d *daemon, backup string) {
	t.Helper()
	if got := d.varve("backup", "list", "-o", "value", "-c", "Name"); got != backup+"\n" {
		t.Errorf("backups: %q, want %q alone", got, backup)
	}
	if got := d.value("status", "volume", "show", "vol"); got != "available" {
		t.Errorf("the volume is %s, want available", got)
	}
	if got := d.varve("snapshot", "list", "vol", "-o", "value", "-c", "ID"); got != "" {
		t.Errorf("snapshots are left: %q", got)
	}
}
