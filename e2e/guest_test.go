package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// A guest has a file system on a volume "guest", and writes files to it.
type guest struct {
	t       *testing.T
	kind    string // of the file system
	now     func() int
	scratch string // folder
	files   []file
}

// A file was written and synced.
type file struct {
	name   string
	making span
	giving span // its removal; zero: never
}

// start makes volume and file system, and writes files until the function
// that it returns is called.
func (g *guest) start(d *daemon, seed uint64) (end func()) {
	g.t.Helper()
	d.varve("volume", "create", "guest", "--size", "320M") // XFS wants 300
	device, detach := attachLoop(g.t, d, "guest")
	makeFS(g.t, g.kind, device)
	if err := os.Mkdir(g.dir(), 0o700); err != nil {
		g.t.Fatal(err)
	}
	unmount := mount(g.t, "rw", device, g.dir())
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- g.fill(seed, stop) }()
	return func() {
		close(stop)
		if err := <-stopped; err != nil {
			g.t.Errorf("write to the guest's file system: %v", err)
		}
		unmount()
		detach()
	}
}

func (g *guest) dir() string { return filepath.Join(g.scratch, "guest") }

// fill writes and removes files, each with a sync of its folder.
func (g *guest) fill(seed uint64, stop <-chan struct{}) error {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		f := file{name: fmt.Sprintf("file%d", i), making: span{begin: g.now()}}
		if err := writeSynced(filepath.Join(g.dir(), f.name), f.content()); err != nil {
			return err
		}
		f.making.end = g.now()
		g.files = append(g.files, f)
		if old := &g.files[r.IntN(len(g.files))]; r.IntN(2) == 0 && old.giving.begin == 0 {
			old.giving.begin = g.now()
			if err := errors.Join(os.Remove(filepath.Join(g.dir(), old.name)), syncFile(g.dir())); err != nil {
				return err
			}
			old.giving.end = g.now()
		}
	}
}

func (f file) content() []byte {
	sum := sha256.Sum256([]byte(f.name))
	content := make([]byte, int(sum[0])*1000)
	rand.NewChaCha8(sum).Read(content)
	return content
}

// writeSynced makes a file durable, with its name.
func writeSynced(path string, content []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close(), syncFile(filepath.Dir(path)))
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// check mounts what the file system has become, as the guest would after the
// crash, looks for the files, and has its structure checked.
func (g *guest) check(d *daemon, at int) error {
	// Before the first file was synced the file system itself may not be there.
	if len(g.files) == 0 || !g.files[0].making.done(at) {
		return nil
	}
	image := filepath.Join(g.scratch, "image")
	defer os.Remove(image)
	if _, err := tryClient(g.t, "nbdcopy", d.uri("guest"), image); err != nil {
		return err
	}
	if _, err := tryClient(g.t, "mount", "-o", "loop", image, g.dir()); err != nil {
		return fmt.Errorf("the guest's file system: %w", err)
	}
	var all error
	for _, f := range g.files {
		content, err := os.ReadFile(filepath.Join(g.dir(), f.name))
		switch must := f.making.done(at) && !f.giving.begun(at); {
		case err == nil && f.giving.done(at):
			all = errors.Join(all, fmt.Errorf("the guest's file %s is there again", f.name))
		case must && err != nil:
			all = errors.Join(all, fmt.Errorf("the guest's file: %w", err))
		case must && !bytes.Equal(content, f.content()):
			all = errors.Join(all, fmt.Errorf("the guest's file %s has another content", f.name))
		}
	}
	client(g.t, "umount", g.dir())
	return errors.Join(all, fsck(g.t, g.kind, image))
}

// fsck returns an error unless a file system that is not mounted is clean.
func fsck(t *testing.T, kind, device string) error {
	tool := []string{"e2fsck", "-fn", device}
	if kind == "xfs" {
		tool = []string{"xfs_repair", "-n", device}
	}
	_, err := tryClient(t, tool[0], tool[1:]...)
	return err
}
