package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/layers"
)

// I2: what is new appears and what is deleted goes, while the mount is in use;
// what is open stays readable.
func TestAppearAndVanish(t *testing.T) {
	s := newMemSource()
	data := pattern(3<<20, 1)
	old := s.add("v", "old", noon, dense(data))
	m := mountTest(t, s)
	fd := m.open("v", "old", "disk.raw")
	if err := m.statErr("v", "new"); err != unix.ENOENT {
		t.Fatalf("stat of what is not there yet: %v", err)
	}

	s.add("v", "new", noon, dense(data[:10]))
	s.add("w", "first", noon, dense(data[:20]))
	s.remove(old.ID)
	changed := time.Now()
	until(t, "the new images appear, the old one goes", func() bool {
		return m.statErr("v", "new", "disk.raw") == nil && m.statErr("w", "first") == nil &&
			m.statErr("v", "old") == unix.ENOENT && m.statErr("v", "old", "disk.raw") == unix.ENOENT
	})
	// Twice fresh, and time for a busy machine.
	if took := time.Since(changed); took > patience/2 {
		t.Errorf("the change took %v to show", took)
	}
	got := make([]byte, len(data)+1)
	if n := readAll(t, fd, got); n != len(data) || !bytes.Equal(got[:n], data) {
		t.Errorf("an open file lost its data when its image vanished: %d bytes", n)
	}
	if _, now := s.opened(); now != 1 {
		t.Errorf("%d handles are open, want 1", now)
	}
	m.close(fd)
	s.waitIdle(t)
}

// An image that gets another name, or moves to another volume because that did,
// is the same image under a new path.
func TestRename(t *testing.T) {
	s := newMemSource()
	data := pattern(1<<20, 1)
	img := s.add("v", "old", noon, dense(data))
	m := mountTest(t, s)
	before := m.stat("v", "old", "disk.raw")
	fd := m.open("v", "old", "disk.raw")
	img.Name = "new"
	s.change(img)
	until(t, "the new path appears, the old one goes", func() bool {
		return m.statErr("v", "new", "disk.raw") == nil && m.statErr("v", "old") == unix.ENOENT
	})
	img.Volume = "w"
	s.change(img)
	until(t, "the new volume appears, the old one goes", func() bool {
		return m.statErr("w", "new", "disk.raw") == nil && m.statErr("v") == unix.ENOENT
	})
	if after := m.stat("w", "new", "disk.raw"); after.Ino != before.Ino {
		t.Errorf("the inode was %d, is %d", before.Ino, after.Ino)
	}
	m.open("w", "new", "disk.raw")
	got := make([]byte, len(data)+1)
	if n := readAll(t, fd, got); n != len(data) || !bytes.Equal(got[:n], data) {
		t.Errorf("an open file lost its data: %d bytes", n)
	}
	if times, _ := s.opened(); times != 1 {
		t.Errorf("the image was opened %d times, want 1", times)
	}
}

// An image that goes between being looked up and being opened is not there.
func TestOpenVanished(t *testing.T) {
	s := newMemSource()
	img := s.add("v", "a", noon, dense(pattern(10, 1)))
	m := mountTest(t, s)
	m.stat("v", "a", "disk.raw")
	s.remove(img.ID)
	if _, err := openFile(m.path("v", "a", "disk.raw"), unix.O_RDONLY); err != unix.ENOENT {
		t.Errorf("open: %v, want %v", err, unix.ENOENT)
	}
	if log := m.log.String(); log != "" {
		t.Errorf("it is logged as an error:\n%s", log)
	}
}

// I3: a Source that fails gives EIO for the folders and one line in the log, and
// is asked again.
func TestListFails(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(4096, 1)))
	m := mountTest(t, s)
	fd := m.open("v", "a", "disk.raw")
	s.fail(errors.New("the target is away"))
	until(t, "the folder fails", func() bool {
		_, err := runErr("ls", m.Dir())
		return err != nil && strings.Contains(err.Error(), "Input/output error")
	})
	until(t, "the path fails", func() bool { return m.statErr("v", "a") == unix.EIO })
	if err := m.statErr(); err != nil {
		t.Errorf("the mount point itself: %v", err)
	}
	if n, err := pread(fd, make([]byte, 100), 0); n != 100 || err != nil {
		t.Errorf("an open file: %d, %v", n, err)
	}
	before := s.listed()
	until(t, "the list is tried again", func() bool {
		m.statErr("v")
		return s.listed() >= before+2
	})
	if n := strings.Count(m.log.String(), "the target is away"); n != 1 {
		t.Errorf("%d lines in the log, want 1:\n%s", n, m.log)
	}
	s.fail(nil)
	until(t, "the folder works again", func() bool { return m.statErr("v", "a", "disk.raw") == nil })
	if !strings.Contains(m.log.String(), "works again") {
		t.Errorf("the log does not say that it works again:\n%s", m.log)
	}
}

// I3: what is damaged gives an I/O error, never a crash, a hang or other data.
func TestBrokenLayers(t *testing.T) {
	good := dense(pattern(8<<20, 1))
	tests := map[string]*brokenLayer{
		"read error": {readAt: func([]byte, int64) (int, error) { return 0, errors.New("checksum mismatch") }},
		// It is the chunk that does not exist, not the file.
		"missing":     {readAt: func([]byte, int64) (int, error) { return 0, unix.ENOENT }},
		"refused":     {readAt: func([]byte, int64) (int, error) { return 0, unix.EACCES }},
		"interrupted": {readAt: func([]byte, int64) (int, error) { return 0, context.Canceled }},
		"short":       {readAt: func(p []byte, off int64) (int, error) { return len(p) / 2, nil }},
		"early end": {readAt: func(p []byte, off int64) (int, error) {
			return (&memLayer{size: 5}).ReadAt(p, off)
		}},
		"panic":        {readAt: func([]byte, int64) (int, error) { panic("boom") }},
		"extent error": {extents: failingExtents},
		"extent panic": {extents: func(int64, int64) iter.Seq2[layers.Extent, error] { panic("boom") }},
	}
	s := newMemSource()
	for name, l := range tests {
		l.Layer = good
		s.add("v", name, noon, l)
	}
	m := mountTest(t, s)
	for name, l := range tests {
		fd := m.open("v", name, "disk.raw")
		if l.readAt != nil {
			if _, err := pread(fd, make([]byte, 100), 4096); err != unix.EIO {
				t.Errorf("%s: read: %v, want %v", name, err, unix.EIO)
			}
		} else if err := again(func() error { _, err := unix.Seek(fd, 0, unix.SEEK_DATA); return err }); err != unix.EIO {
			t.Errorf("%s: seek: %v, want %v", name, err, unix.EIO)
		}
		m.close(fd)
		if n := strings.Count(m.log.String(), fmt.Sprintf("name=%q", name)) + strings.Count(m.log.String(), "name="+name+" "); n != 1 {
			t.Errorf("%s: %d lines in the log, want 1:\n%s", name, n, m.log)
		}
	}
	s.waitIdle(t)
}

func failingExtents(int64, int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		yield(layers.Extent{}, errors.New("leaf does not decrypt"))
	}
}

// A badSource opens images in its own way.
type badSource struct {
	*memSource
	open func(layers.ID) (Handle, error)
}

func (s *badSource) Open(_ context.Context, id layers.ID) (Handle, error) { return s.open(id) }

// I3: an image that cannot be opened gives an I/O error, and is tried again.
func TestOpenFails(t *testing.T) {
	mem := newMemSource()
	data := pattern(4096, 1)
	mem.add("v", "a", noon, dense(data))
	open := func(id layers.ID) (Handle, error) { return mem.Open(context.Background(), id) }
	steps := []func(layers.ID) (Handle, error){
		func(layers.ID) (Handle, error) { return nil, errors.New("wrong key") },
		func(layers.ID) (Handle, error) { panic("boom") },
		func(id layers.ID) (Handle, error) { // of another size than the list says
			h, err := open(id)
			h.(*memHandle).Layer = dense(data[:100])
			return h, err
		},
	}
	var step atomic.Int32
	m := mountTest(t, &badSource{mem, func(id layers.ID) (Handle, error) {
		if i := int(step.Add(1)) - 1; i < len(steps) {
			return steps[i](id)
		}
		return open(id)
	}})
	for i := range steps {
		if _, err := openFile(m.path("v", "a", "disk.raw"), unix.O_RDONLY); err != unix.EIO {
			t.Errorf("open %d: %v, want %v", i, err, unix.EIO)
		}
	}
	fd := m.open("v", "a", "disk.raw")
	if n, err := pread(fd, make([]byte, 5000), 0); n != len(data) || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	m.close(fd)
	mem.waitIdle(t)
	if n := strings.Count(m.log.String(), "level=ERROR"); n != len(steps) {
		t.Errorf("%d errors in the log, want %d:\n%s", n, len(steps), m.log)
	}
}

// Many readers share one handle, which is closed after the last of them.
func TestConcurrentReaders(t *testing.T) {
	requireMounts(t, "cksum")
	s := newMemSource()
	data := pattern(16<<20+5, 1)
	var running, most atomic.Int32
	good := dense(data)
	s.add("v", "a", noon, &brokenLayer{Layer: good, readAt: func(p []byte, off int64) (int, error) {
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		return good.ReadAt(p, off)
	}})
	m := mountTest(t, s)
	keep := m.open("v", "a", "disk.raw")

	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			// O_DIRECT, so that each read is a request.
			fd, err := openFile(m.path("v", "a", "disk.raw"), unix.O_RDONLY|unix.O_DIRECT)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			got := make([]byte, 300<<10)
			for j := range 10 {
				off := (i*7919 + j*104729*4096) % (len(data) - len(got))
				n, err := pread(fd, got, int64(off))
				if err != nil || !bytes.Equal(got[:n], data[off:off+n]) {
					t.Errorf("read at %d: %d, %v, or other data", off, n, err)
				}
			}
		})
	}
	var sums [4]string
	for i := range sums {
		wg.Go(func() {
			out, err := exec.Command("cksum", m.path("v", "a", "disk.raw")).Output()
			if err != nil {
				t.Error(err)
			}
			sums[i] = string(out)
		})
	}
	wg.Wait()
	for _, sum := range sums {
		if sum != sums[0] {
			t.Errorf("checksums differ: %q", sums)
		}
	}
	if times, now := s.opened(); times != 1 || now != 1 {
		t.Errorf("opened %d times, %d open, want 1 and 1", times, now)
	}
	if n := most.Load(); n > maxFetches {
		t.Errorf("%d reads at once, want at most %d", n, maxFetches)
	}
	m.close(keep)
	s.waitIdle(t)
}

// Root gets requests of 1 MiB: each is a request to an object store.
func TestLargeRequests(t *testing.T) {
	requireMounts(t, "cat")
	s := newMemSource()
	good := dense(pattern(32<<20, 1))
	var calls, largest atomic.Int64
	s.add("v", "a", noon, &brokenLayer{Layer: good, readAt: func(p []byte, off int64) (int, error) {
		calls.Add(1)
		for old := largest.Load(); int64(len(p)) > old && !largest.CompareAndSwap(old, int64(len(p))); old = largest.Load() {
		}
		return good.ReadAt(p, off)
	}})
	m := mountTest(t, s)
	run(t, "cat", m.path("v", "a", "disk.raw"))
	if largest.Load() != maxRequest || calls.Load() > 64 {
		t.Errorf("32 MiB took %d reads of at most %d bytes", calls.Load(), largest.Load())
	}
	// The kernel keeps the pages after the file is closed.
	s.waitIdle(t)
	before := calls.Load()
	run(t, "cat", m.path("v", "a", "disk.raw"))
	if n := calls.Load() - before; n > before/2 { // it may need some of the memory
		t.Errorf("reading it again took %d reads, %d the first time", n, before)
	}
}

// A program that waits for a fetch that hangs can be killed, whether it reads
// through the page cache or not. The fetch goes on, and its handle is not closed
// under it.
func TestKillReader(t *testing.T) {
	requireMounts(t, "cat", "dd")
	for _, args := range [][]string{
		{"cat"},
		{"dd", "iflag=direct", "of=/dev/null", "status=none"},
	} {
		t.Run(args[0], func(t *testing.T) { testKillReader(t, args) })
	}
}

// testKillReader runs a program that reads the file named by its last argument.
func testKillReader(t *testing.T, args []string) {
	s := newMemSource()
	good := dense(pattern(4096, 1))
	began, goOn := make(chan struct{}, 100), make(chan struct{})
	s.add("v", "a", noon, &brokenLayer{Layer: good, readAt: func(p []byte, off int64) (int, error) {
		began <- struct{}{}
		<-goOn
		return good.ReadAt(p, off)
	}})
	m := mountTest(t, s)
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	disk := m.path("v", "a", "disk.raw")
	if args[0] == "dd" {
		disk = "if=" + disk
	}
	cmd := exec.Command(args[0], append(args[1:], disk)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-began
	cmd.Process.Kill()
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	select {
	case <-exited:
	case <-time.After(patience):
		t.Fatal("the reader is still there")
	}
	if _, now := s.opened(); now != 1 {
		t.Errorf("%d handles are open while a fetch runs, want 1", now)
	}
	release()
	s.waitIdle(t)
}
