package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/agent"
	"varve/agent/repo"
	"varve/layers"
)

// directRestore writes a backup as a sparse raw image to the file at path.
// The image comes into being under another name beside it and gets its own
// when it is whole and durable, so that path never holds half of one.
func (c *call) directRestore(ref, path string) error {
	if err := checkDestination("restore", path, c.Bool("force")); err != nil {
		return err
	}
	t, b, err := c.openBackup(ref)
	if err != nil {
		return err
	}
	defer t.Close()
	id, err := layers.ParseID(b.ID)
	if err != nil {
		return err
	}
	image, err := newImage(path, b.SizeBytes)
	if err != nil {
		return fmt.Errorf("restore backup %s to %s: %w", ref, path, err)
	}
	defer image.abandon()

	bar := newProgress(c.stderr, "backup restore", c.onTerminal())
	err = t.Restore(c.ctx, id, image, repo.RestoreOptions{Blank: true, Progress: bar.update})
	bar.finish()
	if err == nil {
		err = image.finish(c.Bool("force"))
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: the image needs up to %s on the file system of %s", err, formatBytes(b.SizeBytes), filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("restore backup %s to %s: %w; %s is as it was before", ref, path, err, path)
	}
	fmt.Fprintf(c.stdout, "restored backup %s (%s, volume %s) to %s, %d bytes\n", b.Name, b.ID, b.VolumeName, path, b.SizeBytes)
	return nil
}

// checkDestination refuses what a restore or an export would destroy. It looks
// before anything is begun.
func checkDestination(act, path string, force bool) error {
	if info, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%s to %s: the folder: %w", act, path, err)
	} else if !info.IsDir() {
		return usagef("%s to %s: %s is no folder", act, path, filepath.Dir(path))
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s to %s: %w", act, path, err)
	case !info.Mode().IsRegular():
		return usagef("%s to %s: it is not a regular file; %s to a file and copy that with dd or nbdcopy", act, path, act)
	case !force:
		return &agent.Error{Reason: agent.Conflict, Message: fmt.Sprintf("%s to %s: it exists; --force overwrites it", act, path)}
	}
	return nil
}

// An image is a raw image that is being written: repo.Writer.
type image struct {
	*os.File
	path string
}

func newImage(path string, size int64) (*image, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return nil, err
	}
	i := &image{File: f, path: path}
	if err := f.Truncate(size); err != nil {
		i.abandon()
		return nil, err
	}
	return i, nil
}

// WriteZeroes has nothing to do: the file is new, and nothing is written
// twice.
func (i *image) WriteZeroes(off, n int64) error { return nil }

// finish makes the image durable and gives it its name.
func (i *image) finish(overwrite bool) error {
	if err := i.Sync(); err != nil {
		return err
	}
	if err := i.Close(); err != nil {
		return err
	}
	place := renameNew
	if overwrite {
		place = os.Rename
	}
	if err := place(i.Name(), i.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(i.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// abandon closes the file and removes the name that it was written under.
func (i *image) abandon() {
	i.Close()           // it is closed already if all went well
	os.Remove(i.Name()) // and renamed or linked
}

// renameNew is a rename that refuses to replace a file that came up meanwhile.
// Not every file system knows the flag; those that do not know links.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Link(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
