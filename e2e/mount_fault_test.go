package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// A bareMount is a target that is mounted without a daemon.
type bareMount struct {
	t     *testing.T
	point string
	log   string // file: what the program says
	cmd   *exec.Cmd
	ended chan struct{} // closed when the program has ended, with cmd.ProcessState set
}

// mountBare mounts a target and waits until the image of a backup shows.
func mountBare(t *testing.T, d *daemon, target, image string) *bareMount {
	t.Helper()
	folder := mountFolder(t)
	m := &bareMount{t: t, point: filepath.Join(folder, "point"), log: filepath.Join(folder, "log"), ended: make(chan struct{})}
	if err := os.Mkdir(m.point, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the program has its own
	m.cmd = exec.Command(program, "--target", target, "mount", m.point)
	m.cmd.Env, m.cmd.Stdout, m.cmd.Stderr = d.environ(), log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		m.cmd.Wait() // how it ended stands in cmd.ProcessState
		close(m.ended)
	}()
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		<-m.ended
		if t.Failed() {
			t.Logf("the mount said:\n%s", m.said())
		}
	})
	await(t, image+" shows", func() bool {
		_, err := os.Stat(filepath.Join(m.point, image))
		return err == nil
	})
	return m
}

func (m *bareMount) said() string {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// interrupt is Ctrl-C.
func (m *bareMount) interrupt() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGINT); err != nil {
		m.t.Fatal(err)
	}
}

// awaitEnd waits until the program has ended.
func (m *bareMount) awaitEnd(what string) {
	m.t.Helper()
	select {
	case <-m.ended:
	case <-time.After(patience):
		m.t.Fatalf("%s: the mount's program is still there", what)
	}
}

// startReader runs cat on a file. It is killed when the test ends.
func startReader(t *testing.T, path string) (reader *exec.Cmd, ended chan error) {
	t.Helper()
	reader, ended = exec.Command("cat", path), make(chan error, 1)
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- reader.Wait() }()
	t.Cleanup(func() { reader.Process.Kill() })
	return reader, ended
}

func awaitReader(t *testing.T, what string, ended chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatalf("%s: the reader is still there", what)
		return nil
	}
}

// stallPacks lets a proxy say nothing to requests for packs. Each that comes
// fills the channel.
func stallPacks(p *testbed.FaultProxy) chan struct{} {
	asked := make(chan struct{}, 1)
	p.Set(func(r *http.Request) testbed.Fault {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/p/") {
			return testbed.Fault{}
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		return testbed.Fault{Stall: true}
	})
	return asked
}

// TestMountOfStalledTarget mounts a target that says nothing any more. Looking
// around works, a reader can be killed, Ctrl-C and umount free the folder while
// others read, and reads work again with the target. That a read ends by itself,
// with EIO and a line in the log, is TestReadIsBounded in fuse: it takes two
// minutes. I3
func TestMountOfStalledTarget(t *testing.T) {
	testbed.Require(t, "nbdcopy", "cat", "umount")
	s := testbed.S3(t)
	proxy := testbed.NewFaultProxy(t, s.URL)
	d := startDaemon(t, words(s.Env())...)
	path := filepath.Join(t.TempDir(), "image")
	want := randomImage(t, path, 8*MiB)
	d.varve("volume", "create", "vol", "--size", "8M")
	client(t, "nbdcopy", path, d.uri("vol"))
	// The server is shared: a place of its own for each run.
	target := "s3://varve-e2e/" + filepath.Base(d.state) + "?endpoint=" + proxy.URL
	d.varve("target", "add", "offsite", target)
	d.varve("backup", "create", "vol", "--name", "back")
	const image = "vol/back/disk.raw"
	awaitAsked := func(asked chan struct{}) {
		t.Helper()
		select {
		case <-asked:
		case <-time.After(patience):
			t.Fatal("nobody asks for a pack")
		}
	}

	t.Run("kill the reader", func(t *testing.T) {
		m := mountBare(t, d, target, image)
		asked := stallPacks(proxy)
		defer proxy.Set(nil)
		reader, ended := startReader(t, filepath.Join(m.point, image))
		awaitAsked(asked)
		if names, err := os.ReadDir(filepath.Join(m.point, "vol")); err != nil || len(names) != 1 {
			t.Errorf("a look into the folder: %v, %v", names, err)
		}
		reader.Process.Kill()
		awaitReader(t, "killed", ended)
		proxy.Set(nil)
		if got := readFile(t, filepath.Join(m.point, image)); !bytes.Equal(got, want) {
			t.Error("with the target back the image has other bytes")
		}
		m.interrupt()
		m.awaitEnd("after Ctrl-C")
		if mounted(m.point) || !m.cmd.ProcessState.Success() {
			t.Errorf("after Ctrl-C: mounted %v, the program ended with %v", mounted(m.point), m.cmd.ProcessState)
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		m := mountBare(t, d, target, image)
		asked := stallPacks(proxy)
		defer proxy.Set(nil)
		_, ended := startReader(t, filepath.Join(m.point, image))
		awaitAsked(asked)
		m.interrupt()
		await(t, "the folder is free", func() bool { return !mounted(m.point) })
		await(t, "the mount says what it waits for", func() bool { return strings.Contains(m.said(), "open in it") })
		m.interrupt()
		m.awaitEnd("after a second Ctrl-C")
		if err := awaitReader(t, "without its mount", ended); err == nil {
			t.Error("a reader whose mount has gone took what it had for all")
		}
	})
	t.Run("umount", func(t *testing.T) {
		m := mountBare(t, d, target, image)
		asked := stallPacks(proxy)
		defer proxy.Set(nil)
		_, ended := startReader(t, filepath.Join(m.point, image))
		awaitAsked(asked)
		if out, err := tryClient(t, "umount", m.point); err == nil {
			t.Errorf("umount while somebody reads: %s", out)
		}
		client(t, "umount", "-l", m.point)
		proxy.Set(nil) // the stalled request is made again
		if err := awaitReader(t, "with the target back", ended); err != nil {
			t.Errorf("a reader of what was unmounted lazily: %v", err)
		}
		m.awaitEnd("unmounted, and closed")
	})
}

// TestMountOfDamagedTarget mounts a target of which a pack rots and another one
// goes, as if somebody had pruned it: what they held is an I/O error and a line
// in the log that names the pack, all else reads as it was. // I3, B15
func TestMountOfDamagedTarget(t *testing.T) {
	testbed.Require(t, "nbdcopy")
	d := startDaemon(t)
	path, folder := filepath.Join(t.TempDir(), "image"), t.TempDir()
	images, target := map[string][]byte{}, "file://"+folder
	d.varve("target", "add", "offsite", target)
	packs := func() []string {
		found, err := filepath.Glob(filepath.Join(folder, "p", "*", "*"))
		if err != nil || len(found) == 0 {
			t.Fatalf("packs of the target: %v, %v", found, err)
		}
		return found
	}
	packOf := map[string]string{}
	for _, name := range []string{"whole", "rotten", "gone"} {
		var before []string
		if len(packOf) > 0 {
			before = packs()
		}
		images[name] = randomImage(t, path, 8*MiB)
		d.varve("volume", "create", name, "--size", "8M")
		client(t, "nbdcopy", path, d.uri(name))
		d.varve("backup", "create", name, "--name", "back")
		added := slices.DeleteFunc(packs(), func(p string) bool { return slices.Contains(before, p) })
		if len(added) != 1 {
			t.Fatalf("the backup of %s wrote %q, want one pack", name, added)
		}
		packOf[name] = added[0]
	}
	m := mountBare(t, d, target, "whole/back/disk.raw")
	rotten := readFile(t, packOf["rotten"])
	rotten[len(rotten)/2] ^= 1
	if err := os.WriteFile(packOf["rotten"], rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(packOf["gone"]); err != nil {
		t.Fatal(err)
	}
	for name, want := range images {
		good, bad := readBlocks(t, filepath.Join(m.point, name, "back", "disk.raw"), want)
		if (name == "whole") != (bad == 0) || (good == 0) != (name == "gone") {
			t.Errorf("%s: %d blocks read, %d are I/O errors", name, good, bad)
		}
		pack := filepath.Base(packOf[name])
		if told := strings.Contains(m.said(), pack); told != (name != "whole") {
			t.Errorf("%s: the log names the pack %s: %v", name, pack, told)
		}
	}
	m.interrupt()
	m.awaitEnd("after Ctrl-C")
}

// readBlocks reads a file block by block. What can be read has to be as wanted,
// what cannot has to be EIO.
func readBlocks(t *testing.T, path string, want []byte) (good, bad int) {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, syscall.EIO) {
		return 0, len(want) / blockSize
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, blockSize)
	for off := 0; off < len(want); off += blockSize {
		n, err := f.ReadAt(block, int64(off))
		switch {
		case errors.Is(err, syscall.EIO):
			bad++
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		case n != len(block) || !bytes.Equal(block, want[off:off+blockSize]):
			t.Fatalf("%s: other bytes at %d", path, off)
		default:
			good++
		}
	}
	return good, bad
}

// TestManyMounts lets a daemon have many mounts, through which as many read one
// backup at the same time: all get its bytes, in bounded memory, and the end of
// the daemon unmounts all. // I2
func TestManyMounts(t *testing.T) {
	testbed.Require(t, "nbdcopy")
	const many, size = 24, 192 * MiB
	d := startDaemon(t)
	path, folder := filepath.Join(t.TempDir(), "image"), mountFolder(t)
	want := randomImage(t, path, size)
	d.varve("volume", "create", "vol", "--size", "192M")
	client(t, "nbdcopy", path, d.uri("vol"))
	d.varve("target", "add", "offsite", "file://"+t.TempDir())
	d.varve("backup", "create", "vol", "--name", "back")
	points := make([]string, many)
	for i := range points {
		points[i] = filepath.Join(folder, fmt.Sprint(i))
		if err := os.Mkdir(points[i], 0o700); err != nil {
			t.Fatal(err)
		}
		d.varve("mount", points[i])
	}
	if err := os.WriteFile(d.proc("clear_refs"), []byte("5"), 0); err != nil { // proc_pid_clear_refs(5): the peak begins anew
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i, point := range points {
		all.Go(func() {
			f, err := os.Open(filepath.Join(point, "vol", "back", "disk.raw"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			got := make([]byte, MiB)
			for n := range size / MiB {
				// Each at a place of its own, so that none finds what another read.
				at := (n*7 + i*size/MiB/many) % (size / MiB) * MiB
				if _, err := f.ReadAt(got, int64(at)); err != nil || !bytes.Equal(got, want[at:at+MiB]) {
					t.Errorf("%s at %d: %v, or other bytes", point, at, err)
					return
				}
			}
		})
	}
	all.Wait()
	peak := d.peak()
	t.Logf("%d readers: at most %d MiB", many, peak/MiB)
	if peak > mountMemoryMax {
		t.Errorf("%d readers took up to %d MiB of memory, %d are allowed", many, peak/MiB, mountMemoryMax/MiB)
	}
	d.stop()
	if left := mountsIn(folder); len(left) > 0 {
		t.Errorf("the daemon left mounts: %q", left)
	}
}

// mountMemoryMax is what a daemon may have resident however many read mounted
// backups of one target: what it is at rest, the cache of 64 MiB, as much again
// until the collector comes, 12 requests of up to 4 MiB with what they hold, and
// a buffer of 1 MiB for each read.
const mountMemoryMax = 384 * MiB
