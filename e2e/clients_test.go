package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

const MiB = 1 << 20

// randomImage writes an image of size bytes: random data with holes between.
func randomImage(t *testing.T, path string, size int64) []byte {
	t.Helper()
	image := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1, 2, 3})
	for off := int64(0); off < size; off += 3 * MiB {
		random.Read(image[off:min(off+MiB+512, size)])
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return image
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNBDInfo asks libnbd what a volume and a snapshot of it offer.
func TestNBDInfo(t *testing.T) {
	testbed.Require(t, "nbdinfo")
	d := startDaemon(t)
	d.varve("volume", "create", "vol", "--size", "64M")
	d.varve("snapshot", "create", "vol", "--name", "snap")
	var list struct {
		Exports []struct {
			Name     string `json:"export-name"`
			Size     int64  `json:"export-size"`
			ReadOnly bool   `json:"is_read_only"`
			Flush    bool   `json:"can_flush"`
			FUA      bool   `json:"can_fua"`
			Trim     bool   `json:"can_trim"`
			Zero     bool   `json:"can_zero"`
			Multi    bool   `json:"can_multi_conn"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(client(t, "nbdinfo", "--json", "--list", d.uri(""))), &list); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range list.Exports {
		seen[e.Name] = true
		if e.Size != 64*MiB {
			t.Errorf("export %q has %d bytes, want %d", e.Name, e.Size, 64*MiB)
		}
		if writable := e.Name == "vol"; e.ReadOnly == writable {
			t.Errorf("export %q: read-only is %v", e.Name, e.ReadOnly)
		} else if writable && !(e.Flush && e.FUA && e.Trim && e.Zero && e.Multi) {
			t.Errorf("export %q offers flush %v, FUA %v, trim %v, write-zeroes %v, multi-conn %v; want all",
				e.Name, e.Flush, e.FUA, e.Trim, e.Zero, e.Multi)
		}
	}
	if !seen["vol"] || !seen["vol@snap"] {
		t.Errorf("exports listed: %v, want vol and vol@snap", seen)
	}
}

// TestNBDCopy copies an image in, takes a snapshot, overwrites the volume with
// another image, and copies both out. S1
func TestNBDCopy(t *testing.T) {
	testbed.Require(t, "nbdcopy", "nbdinfo")
	d := startDaemon(t)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	image := randomImage(t, first, 40*MiB)
	if err := os.WriteFile(second, bytes.Repeat([]byte("varve..."), 40*MiB/8), 0o600); err != nil {
		t.Fatal(err)
	}
	d.varve("volume", "create", "vol", "--size", "40M")
	client(t, "nbdcopy", first, d.uri("vol"))
	d.varve("snapshot", "create", "vol", "--name", "snap")
	client(t, "nbdcopy", second, d.uri("vol"))

	out := filepath.Join(dir, "out")
	client(t, "nbdcopy", d.uri("vol@snap"), out)
	if !bytes.Equal(readFile(t, out), image) {
		t.Error("the snapshot is not the image that was written before it")
	}
	client(t, "nbdcopy", d.uri("vol"), out)
	if !bytes.Equal(readFile(t, out), readFile(t, second)) {
		t.Error("the volume is not the image that was written last")
	}
	if m := client(t, "nbdinfo", "--map", "--totals", d.uri("vol@snap")); !strings.Contains(m, "hole,zero") {
		t.Errorf("the map of the snapshot shows no holes:\n%s", m)
	}
}

// TestQEMU drives a volume with QEMU's tools: patterns, discard, zeros, compare. V2
func TestQEMU(t *testing.T) {
	testbed.Require(t, "qemu-io", "qemu-img")
	d := startDaemon(t)
	image := filepath.Join(t.TempDir(), "image")
	randomImage(t, image, 32*MiB)
	d.varve("volume", "create", "vol", "--size", "32M")
	client(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, d.uri("vol"))
	client(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.uri("vol"))

	d.varve("snapshot", "create", "vol", "--name", "snap")
	client(t, "qemu-io", "-t", "writeback", "-d", "unmap", "-f", "raw", d.uri("vol"),
		"-c", "write -P 0x41 1000 70000", "-c", "write -z 8M 3M", "-c", "discard 16M 1M", "-c", "flush",
		"-c", "read -P 0x41 1000 70000", "-c", "read -P 0 8M 3M", "-c", "write -f -P 0x42 20M 64k", "-c", "read -P 0x42 20M 64k")
	client(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.uri("vol@snap"))
}

// TestFio writes at random at depth 16 over four connections and verifies each
// block's checksum, over a unix socket and over TCP.
func TestFio(t *testing.T) {
	testbed.Require(t, "fio")
	d := startDaemon(t)
	d.varve("volume", "create", "vol", "--size", "256M")
	client(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+d.uri("vol"), "--rw=randwrite", "--bsrange=512-64k",
		"--blockalign=512", "--size=64M", "--offset_increment=64M", "--numjobs=4", "--iodepth=16", "--fsync=32",
		"--verify=crc32c", "--verify_state_save=0", "--do_verify=1", "--verify_fatal=1", "--minimal")
}
