package catalog

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/layers"
)

// smallDisk mounts an empty file system of so many bytes.
func smallDisk(t *testing.T, bytes string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+bytes); err != nil {
		if os.Getenv("STRICT") == "1" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("no small disk can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fillDisk takes all room that is left.
func fillDisk(t *testing.T, dir string) (again func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "fill"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() { os.Remove(filepath.Join(dir, "fill")) }
}

// A full disk is an error and never a bus error: changes go on while they are
// safe, then are refused; nothing that was acknowledged is lost, and the
// catalog closes and opens on the full disk.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, "200m")
	dir := filepath.Join(disk, "catalog")
	c := open(t, dir)
	id := layers.NewID()
	put := func() (int64, error) {
		var done int64
		err := c.Update(func(tx *Tx) error {
			o, _ := Operations.Get(tx, id) // The first time there is none.
			o.ID, o.Note = id, strings.Repeat("x", 16<<10)
			o.Done++
			done = o.Done
			return Operations.Put(tx, o)
		})
		return done, err
	}
	acknowledged := int64(0)
	more := func(n int) error {
		t.Helper()
		for range n {
			done, err := put()
			if err != nil {
				return err
			}
			acknowledged = done
		}
		return nil
	}
	if err := more(10); err != nil {
		t.Fatal(err)
	}
	makeRoom := fillDisk(t, disk)
	if err := more(100); err != nil {
		t.Errorf("the first changes on a full disk: %v", err)
	}
	for full := false; !full; {
		err := more(100)
		if full = errors.Is(err, ErrFull); err != nil && !full {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err == nil {
		t.Log("it closes on a full disk")
		c = open(t, dir)
	} else if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	makeRoom()
	if err := more(100); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	fillDisk(t, disk)
	if err := c.Close(); err != nil {
		t.Errorf("close on a full disk with the reserve: %v", err)
	}
	c = open(t, dir)
	c.View(func(tx *Tx) error {
		o, err := Operations.Get(tx, id)
		if err != nil || o.Done != acknowledged {
			t.Errorf("%d changes are there, %v, want %d", o.Done, err, acknowledged)
		}
		return nil
	})
}

// A process that was killed on a full disk has left a log that the next Open
// writes a table of.
func TestOpenOnAFullDiskAfterAKill(t *testing.T) {
	if dir := os.Getenv("CATALOG_TEST_KILL"); dir != "" {
		c := open(t, dir)
		for range 100 {
			update(t, c, func(tx *Tx) error {
				return Operations.Put(tx, Operation{ID: layers.NewID(), Note: strings.Repeat("x", 16<<10)})
			})
		}
		fillDisk(t, filepath.Dir(dir))
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	disk := smallDisk(t, "200m")
	dir := filepath.Join(disk, "catalog")
	child := exec.Command(os.Args[0], "-test.run=^TestOpenOnAFullDiskAfterAKill$")
	child.Env = append(os.Environ(), "CATALOG_TEST_KILL="+dir)
	if out, err := child.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("child: %v\n%s", err, out)
	}
	c := open(t, dir)
	count := 0
	c.View(func(tx *Tx) error {
		for _, err := range Operations.All(tx) {
			if err != nil {
				t.Error(err)
			}
			count++
		}
		return nil
	})
	if count != 100 {
		t.Errorf("%d records, want 100", count)
	}
	c.Close()
	fillDisk(t, disk) // Now the reserve is gone, too.
	if c, err := Open(dir, nil); err == nil {
		c.Close()
	} else if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("Open: %v, want ErrFull", err)
	}
}

// On a full disk the reserve is there for who frees space, and it comes back
// with the first change that finds room.
func TestGiveRoom(t *testing.T) {
	disk := smallDisk(t, "300m")
	dir := filepath.Join(disk, "catalog")
	c := open(t, dir)
	empty := fillDisk(t, disk)
	file := filepath.Join(disk, "file")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("write on a full disk: %v, want %v", err, unix.ENOSPC)
	}
	for range 2 { // Twice is no error.
		if err := c.GiveRoom(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, make([]byte, reserveSize/2), 0o600); err != nil {
		t.Errorf("write after the reserve was given up: %v", err)
	}
	empty()
	err := c.Update(func(tx *Tx) error { return Operations.Put(tx, Operation{ID: layers.NewID()}) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "reserve")); err != nil {
		t.Errorf("the reserve did not come back: %v", err)
	}
}
