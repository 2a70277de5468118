package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// attachLoop shows an export as a block device: nbdfuse and a loop device, for
// machines whose kernel has no NBD client. It returns the device, and a
// function that takes it away again.
func attachLoop(t *testing.T, d *daemon, export string) (device string, detach func()) {
	t.Helper()
	testbed.Require(t, "nbdfuse", "losetup", "fusermount3", "mkfs.ext4", "e2fsck", "fstrim")
	dir := t.TempDir()
	fuse := exec.Command("nbdfuse", "-C", "4", dir, "--uri", d.uri(export))
	if strings.Contains(export, "@") {
		fuse.Args = append(fuse.Args[:1], append([]string{"-r"}, fuse.Args[1:]...)...)
	}
	fuse.Stderr = os.Stderr
	if err := fuse.Start(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "nbd")
	await(t, "nbdfuse shows the file "+file, func() bool {
		_, err := os.Stat(file)
		return err == nil
	})
	device = strings.TrimSpace(client(t, "losetup", "--find", "--show", file))
	done := false
	detach = func() {
		if done {
			return
		}
		done = true
		client(t, "losetup", "-d", device)
		client(t, "umount", dir)
		if err := fuse.Wait(); err != nil {
			t.Errorf("nbdfuse: %v", err)
		}
	}
	t.Cleanup(detach)
	return device, detach
}

// mount mounts a device, and returns the function that unmounts it.
func mount(t *testing.T, options, device, dir string) func() {
	t.Helper()
	client(t, "mount", "-o", options, device, dir)
	done := false
	unmount := func() {
		if !done {
			done = true
			client(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// TestFileSystem puts ext4 on a volume, takes snapshots while it is mounted,
// and finds each state whole and clean. V2, S1
func TestFileSystem(t *testing.T) {
	testbed.RequireRoot(t)
	d := startDaemon(t)
	d.varve("volume", "create", "disk", "--size", "512M")
	device, detach := attachLoop(t, d, "disk")
	client(t, "mkfs.ext4", "-q", "-F", device)
	dir := t.TempDir()
	unmount := mount(t, "rw", device, dir)

	content := bytes.Repeat([]byte("monday "), 3*MiB)
	if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	client(t, "fsfreeze", "-f", dir)
	d.varve("snapshot", "create", "disk", "--name", "monday")
	client(t, "fsfreeze", "-u", dir)
	if err := os.Remove(filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	client(t, "sync", "-f", dir)
	client(t, "fstrim", dir)
	unmount()
	client(t, "e2fsck", "-fn", device)
	detach()

	snapshot, detach := attachLoop(t, d, "disk@monday")
	unmount = mount(t, "ro,noload", snapshot, dir)
	if !bytes.Equal(readFile(t, filepath.Join(dir, "file")), content) {
		t.Error("the file in the snapshot is not what was written before it")
	}
	unmount()
	detach()
}

// TestTrim gives the space of a removed file back through fstrim. V2
func TestTrim(t *testing.T) {
	testbed.RequireRoot(t)
	d := startDaemon(t)
	d.varve("volume", "create", "disk", "--size", "256M")
	device, _ := attachLoop(t, d, "disk")
	makeFS(t, "ext4", device)
	dir := t.TempDir()
	mount(t, "rw", device, dir)
	empty := actualSize(t, d, "disk")

	file := filepath.Join(dir, "file")
	if err := writeSynced(file, bytes.Repeat([]byte("not zero"), 8*MiB)); err != nil {
		t.Fatal(err)
	}
	if full := actualSize(t, d, "disk"); full < empty+64*MiB {
		t.Errorf("with a file of 64 MiB the volume takes %d bytes, %d without", full, empty)
	}
	if err := errors.Join(os.Remove(file), syncFile(dir)); err != nil {
		t.Fatal(err)
	}
	client(t, "fstrim", dir)
	if trimmed := actualSize(t, d, "disk"); trimmed > empty+MiB {
		t.Errorf("after fstrim the volume takes %d bytes, %d before the file was written", trimmed, empty)
	}
}

// actualSize is what volume show says that a volume takes, in bytes.
func actualSize(t *testing.T, d *daemon, volume string) int64 {
	t.Helper()
	var shown struct {
		ActualSize int64 `json:"actual_size"`
	}
	if err := json.Unmarshal([]byte(d.varve("volume", "show", volume, "--long", "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	return shown.ActualSize
}
