package fuse

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Wait returns when somebody else unmounts.
func TestUnmountByOthers(t *testing.T) {
	requireMounts(t, "umount")
	m := mountTest(t, newMemSource())
	run(t, "umount", m.Dir())
	m.Wait()
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmounting it again: %v", err)
	}
}

// The end of the context unmounts.
func TestUnmountAtEndOfContext(t *testing.T) {
	requireMounts(t)
	ctx, cancel := context.WithCancel(t.Context())
	server, err := Mount(ctx, t.TempDir(), newMemSource(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	server.Wait()
	if _, top, err := lookAt(server.Dir()); top != nil || err != nil {
		t.Errorf("after the end of the context: %+v, %v", top, err)
	}
}

// Unmount frees the folder although a file is open; the file stays readable,
// and Wait returns when it is closed.
func TestUnmountInUse(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(1<<20, 1)))
	m := mountTest(t, s)
	fd := m.open("v", "a", "disk.raw")
	if err := m.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, top, err := lookAt(m.Dir()); top != nil || err != nil {
		t.Errorf("after unmounting: %+v, %v", top, err)
	}
	got := make([]byte, 2<<20)
	if n := readAll(t, fd, got); n != 1<<20 {
		t.Errorf("read %d bytes of the open file", n)
	}
	select {
	case <-m.done:
		t.Error("Wait returns while a file is open")
	default:
	}
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("unmounting it again: %v", err)
	}
	m.close(fd)
	m.Wait()
	s.waitIdle(t)
}

// Unmount leaves alone what somebody has mounted on top, or in its place.
func TestUnmountBelowAnother(t *testing.T) {
	m := mountTest(t, newMemSource())
	if err := unix.Mount("none", m.Dir(), "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	err := m.Unmount(t.Context())
	if err == nil || !strings.Contains(err.Error(), "tmpfs) is mounted on top of it") {
		t.Errorf("unmount below another mount: %v", err)
	}
	if err := unix.Unmount(m.Dir(), 0); err != nil {
		t.Error(err)
	}
}

// A connection that is aborted closes the images that were open.
func TestAbort(t *testing.T) {
	s := newMemSource()
	s.add("v", "a", noon, dense(pattern(1<<20, 1)))
	m := mountTest(t, s)
	fd := m.open("v", "a", "disk.raw")
	_, minor, _ := strings.Cut(m.mount.dev, ":")
	connections := "/sys/fs/fuse/connections"
	if _, err := os.Stat(filepath.Join(connections, minor)); err != nil {
		if err := unix.Mount("none", connections, "fusectl", 0, ""); err != nil {
			t.Fatalf("mount fusectl: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(connections, 0) })
	}
	if err := os.WriteFile(filepath.Join(connections, minor, "abort"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	s.waitIdle(t)
	if _, err := pread(fd, make([]byte, 10), 0); err == nil {
		t.Error("the aborted mount still reads")
	}
	// What it leaves is stale, and taken over.
	again, err := Mount(context.Background(), m.Dir(), s, Options{Log: m.Server.log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := again.Unmount(ctx); err != nil {
		t.Error(err)
	}
	again.Wait()
}
