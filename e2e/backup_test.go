package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// TestBackup makes a full and an incremental backup in each kind of target,
// destroys the state folder, and restores both from the target alone. Deleted and
// pruned, they leave it. B1, B5, B7, B10, B13, B17
func TestBackup(t *testing.T) {
	testbed.Require(t, "nbdcopy", "qemu-io")
	t.Run("directory", func(t *testing.T) { testBackup(t, "file://"+t.TempDir()) })
	t.Run("swift", func(t *testing.T) {
		s := testbed.Swift(t)
		testBackup(t, "swift://varve-e2e/host1", words(s.Env())...)
	})
	t.Run("s3", func(t *testing.T) {
		s := testbed.S3(t)
		testBackup(t, "s3://varve-e2e/host1?endpoint="+s.URL, words(s.Env())...)
	})
}

// words turns an environment into NAME=VALUE words.
func words(env map[string]string) []string {
	var all []string
	for name, value := range env {
		all = append(all, name+"="+value)
	}
	return all
}

func testBackup(t *testing.T, target string, env ...string) {
	d := startDaemon(t, env...)
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	monday := randomImage(t, path, 96*MiB)
	d.varve("volume", "create", "vol", "--size", "96M")
	client(t, "nbdcopy", path, d.uri("vol"))
	d.varve("target", "add", "offsite", target)
	d.varve("backup", "create", "vol", "--name", "monday")

	client(t, "qemu-io", "-t", "writeback", "-f", "raw", d.uri("vol"), "-c", "write -P 7 1M 100k", "-c", "write -z 3M 64k", "-c", "flush")
	tuesday := bytes.Clone(monday)
	copy(tuesday[MiB:], bytes.Repeat([]byte{7}, 100<<10))
	clear(tuesday[3*MiB : 3*MiB+64<<10])
	d.varve("backup", "create", "vol", "--name", "tuesday", "--incremental")

	if got := d.value("is_incremental", "backup", "show", "tuesday"); got != "True" {
		t.Errorf("tuesday: is_incremental is %s", got)
	}
	if got := d.value("has_dependent_backups", "backup", "show", "monday"); got != "True" {
		t.Errorf("monday: has_dependent_backups is %s", got)
	}
	full, incremental := stored(t, d, "monday"), stored(t, d, "tuesday")
	if full < 30*MiB || incremental > MiB {
		t.Errorf("stored: full %d bytes, incremental %d; want more than 30 MiB, and less than 1 MiB", full, incremental)
	}

	d.destroy()
	d.start()
	d.varve("target", "add", "offsite", target)
	for name, want := range map[string][]byte{"monday": monday, "tuesday": tuesday} {
		d.varve("backup", "verify", name, "--deep")
		d.varve("backup", "restore", name, "--name", "restored-"+name)
		out := filepath.Join(dir, "out")
		client(t, "nbdcopy", d.uri("restored-"+name), out)
		if !bytes.Equal(readFile(t, out), want) {
			t.Errorf("%s restored into a volume differs from what was backed up", name)
		}
		bare := filepath.Join(dir, name+".raw")
		d.varve("--target", target, "backup", "restore", name, bare)
		if !bytes.Equal(readFile(t, bare), want) {
			t.Errorf("%s restored into a file without the daemon differs from what was backed up", name)
		}
	}
	d.varve("backup", "delete", "tuesday")
	if got := d.value("has_dependent_backups", "backup", "show", "monday"); got != "False" {
		t.Errorf("after tuesday's deletion monday's has_dependent_backups is %s", got)
	}

	// B17: what is deleted leaves the target, and nothing else does.
	before, err := strconv.Atoi(d.value("pack_objects", "target", "prune", "offsite", "--dry-run"))
	if err != nil {
		t.Fatal(err)
	}
	pruneTo(t, d, before-1)
	d.varve("backup", "verify", "monday", "--deep")
	d.varve("backup", "delete", "monday")
	pruneTo(t, d, 0)
}

// pruneTo prunes with a grace that is over with the next tick of the store's
// clock, until so many packs are left: a store may count in seconds.
func pruneTo(t *testing.T, d *daemon, packs int) {
	t.Helper()
	want, got := strconv.Itoa(packs), ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if got = d.value("pack_objects", "target", "prune", "offsite", "--grace", "1ms"); got == want {
			return
		}
	}
	t.Errorf("%s packs are left after pruning, want %s", got, want)
}

func stored(t *testing.T, d *daemon, backup string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(d.value("stored_bytes", "backup", "show", backup, "--long"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestMount browses a snapshot and a backup through FUSE, and mounts the ext4
// inside a backup's disk.raw with the kernel. B18
func TestMount(t *testing.T) {
	testbed.RequireRoot(t)
	testbed.Require(t, "mkfs.ext4", "nbdcopy")
	d := startDaemon(t)
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	want := bytes.Repeat([]byte("layers that keep time\n"), 100000)
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "file"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	client(t, "mkfs.ext4", "-q", "-d", tree, image, "64M")
	d.varve("volume", "create", "vol", "--size", "64M")
	client(t, "nbdcopy", image, d.uri("vol"))
	d.varve("snapshot", "create", "vol", "--name", "snap")
	d.varve("target", "add", "local", "file://"+t.TempDir())
	d.varve("backup", "create", "vol", "--snapshot", "snap", "--name", "copy")

	browse, inside := filepath.Join(dir, "browse"), filepath.Join(dir, "inside")
	for _, m := range []string{browse, inside} {
		if err := os.Mkdir(m, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.varve("mount", browse)
	for _, name := range []string{"snap", "copy"} {
		raw := filepath.Join(browse, "vol", name, "disk.raw")
		if !bytes.Equal(readFile(t, raw), readFile(t, image)) {
			t.Errorf("%s differs from the image", raw)
		}
		unmount := mount(t, "ro,loop,noload", raw, inside)
		if !bytes.Equal(readFile(t, filepath.Join(inside, "file")), want) {
			t.Errorf("the file inside %s differs", raw)
		}
		unmount()
	}
	d.varve("unmount", browse)
	if left, err := os.ReadDir(browse); err != nil || len(left) != 0 {
		t.Errorf("after unmount %s has %v, %v", browse, left, err)
	}

	// A daemon that was killed leaves a dead mount; the next one takes it over.
	d.varve("mount", browse)
	d.kill()
	d.start()
	d.varve("mount", browse)
	if got := readFile(t, filepath.Join(browse, "vol", "snap", "disk.raw")); !bytes.Equal(got, readFile(t, image)) {
		t.Error("after the takeover of a stale mount the snapshot differs")
	}
	d.stop()
	if left, err := os.ReadDir(browse); err != nil || len(left) != 0 {
		t.Errorf("after the daemon's stop %s has %v, %v", browse, left, err)
	}
}
