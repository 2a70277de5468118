package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// TestFullDisk fills the file system below the state folder. Clients get "no
// space left", reads go on, nothing that was answered is damaged; the deletion
// of a snapshot makes room, and writing resumes. A guest's file system that
// was written to meanwhile is clean afterwards, with what it had synced.
func TestFullDisk(t *testing.T) {
	testbed.Require(t, "nbdcopy", "/usr/lib/python3/dist-packages/nbd.py")
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := newDisk(t, kind, 480*MiB)
			d := newDaemon(t, disk.path())
			d.start()
			g := &guest{t: t, kind: kind, now: disk.now, scratch: disk.folder}
			endGuest := startFullGuest(g, d)

			d.varve("volume", "create", "vol", "--size", "1G")
			if n, what := fill(t, d, 0, 64, 1); n != 64 || what != "ok" {
				t.Fatalf("64 MiB on an empty disk: %d, %s", n, what)
			}
			d.varve("snapshot", "create", "vol", "--name", "old")
			if n, what := fill(t, d, 0, 64, 2); n != 64 || what != "ok" {
				t.Fatalf("64 MiB over a snapshot: %d, %s", n, what)
			}
			filled, what := fill(t, d, 64, 900, 3)
			if what != "ENOSPC" {
				t.Fatalf("on a full disk a client got %s after %d MiB, want ENOSPC", what, filled)
			}
			// The guest may or may not get something through now.
			writeSynced(filepath.Join(g.dir(), "on-full-disk"), make([]byte, 8*MiB))
			checkFilled(t, d, disk.folder, filled)
			if warning := d.varve("status"); !strings.Contains(warning, "is full") && !strings.Contains(warning, "has only") {
				t.Errorf("status does not warn:\n%s", warning)
			}

			d.varve("snapshot", "delete", "vol@old")
			await(t, "writing resumes after the deletion of a snapshot", func() bool {
				n, what := fill(t, d, 1000, 16, 4)
				return n == 16 && what == "ok"
			})
			checkFilled(t, d, disk.folder, filled)
			endGuest()
			if err := g.check(d, disk.now()+1); err != nil {
				t.Error(err)
			}
			d.kill()
			d.start()
			checkFilled(t, d, disk.folder, filled)
			if err := g.check(d, disk.now()+1); err != nil {
				t.Error(err)
			}
		})
	}
}

// startFullGuest makes a guest with some files that are synced, and leaves its
// file system mounted until the function that it returns is called.
func startFullGuest(g *guest, d *daemon) (end func()) {
	g.t.Helper()
	d.varve("volume", "create", "guest", "--size", "320M")
	device, detach := attachLoop(g.t, d, "guest")
	makeFS(g.t, g.kind, device)
	if err := os.Mkdir(g.dir(), 0o700); err != nil {
		g.t.Fatal(err)
	}
	unmount := mount(g.t, "rw", device, g.dir())
	for i := range 20 {
		f := file{name: "file" + strconv.Itoa(i), making: span{begin: g.now()}}
		if err := writeSynced(filepath.Join(g.dir(), f.name), f.content()); err != nil {
			g.t.Fatal(err)
		}
		f.making.end = g.now()
		g.files = append(g.files, f)
	}
	return func() {
		unmount()
		detach()
	}
}

// fill writes count MiB of one byte to the volume "vol", and returns how many
// were answered, and ok or the name of the error that ended it.
func fill(t *testing.T, d *daemon, first, count int, b byte) (int, string) {
	t.Helper()
	out := client(t, "/usr/bin/python3", "testdata/fill.py", d.uri("vol"), strconv.Itoa(first), strconv.Itoa(count), strconv.Itoa(int(b)))
	words := strings.Fields(out)
	if len(words) != 2 {
		t.Fatalf("fill.py said %q", out)
	}
	n, err := strconv.Atoi(words[0])
	if err != nil {
		t.Fatal(err)
	}
	return n, words[1]
}

// checkFilled checks that the volume reads as it was filled: 64 MiB of 2, then
// filled MiB of 3.
func checkFilled(t *testing.T, d *daemon, scratch string, filled int) {
	t.Helper()
	h := &history{t: t, scratch: scratch}
	content, err := h.export(d, "vol")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 + filled {
		want := byte(2 + min(i/64, 1))
		if part := content[i*MiB:][:MiB]; bytes.Count(part, []byte{want}) != MiB {
			t.Fatalf("MiB %d of the volume is not what was written to it", i)
		}
	}
}
