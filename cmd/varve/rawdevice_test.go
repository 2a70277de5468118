package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// rawDeviceAt is a raw image of nbdtest.Size zeros, opened for writing.
func rawDeviceAt(t *testing.T) (*rawDevice, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, nbdtest.Size)); err != nil {
		t.Fatal(err)
	}
	d, err := openRawDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func TestRawDevice(t *testing.T) {
	nbdtest.RunSparse(t, func(t *testing.T) nbd.Device {
		d, _ := rawDeviceAt(t)
		return d
	})
}

// A second writer, and a reader that asks for a lock, are refused.
func TestRawDeviceIsLocked(t *testing.T) {
	_, path := rawDeviceAt(t)
	if d, err := openRawDevice(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened twice: %v, %v", d, err)
	}
}

// After a failed flush it takes no more writes, though a second try might
// succeed.
func TestRawDeviceAfterFailedFlush(t *testing.T) {
	d, _ := rawDeviceAt(t)
	pipe, _, err := os.Pipe() // cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	file := d.File
	d.File = pipe
	if err := d.Flush(); err == nil {
		t.Fatal("a pipe was synced")
	}
	d.File = file
	if _, err := d.WriteAt([]byte{1}, 0); err == nil || !strings.Contains(err.Error(), "no more writes") {
		t.Errorf("write: %v", err)
	}
	if err := d.Flush(); err == nil {
		t.Error("flush succeeds")
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("read: %v", err)
	}
}
