package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/repo"
	"varve/layers"
	"varve/nbd"
)

// directRestore writes a backup to a raw or qcow2 file, to stdout, or over an NBD
// export. A file comes into being under another name beside its own and gets
// that when it is whole and durable, so that the name never holds half of one.
func (c *call) directRestore(ref, to string) error {
	out := &imageOut{call: c, act: "backup restore", to: to}
	if err := out.check(); err != nil {
		return err
	}
	t, b, err := c.openBackup(ref)
	if err != nil {
		return err
	}
	defer t.Close()
	past := &pastDamage{call: c}
	if err := t.restore(b, out, past); err != nil {
		return fmt.Errorf("restore backup %s to %s: %w", ref, to, err)
	}
	fmt.Fprintf(out.said(), "restored backup %s (%s, volume %s) to %s, %d bytes\n", b.Name, b.ID, b.VolumeName, to, b.SizeBytes)
	return past.tell()
}

// restore reads a backup in the order of its packs, where the destination can
// take it so.
func (t *bareTarget) restore(b api.Backup, out *imageOut, past *pastDamage) error {
	id, err := layers.ParseID(b.ID)
	if err != nil {
		return err
	}
	inOrderOfPacks := func(to repo.Writer, blank bool) error {
		bar := newProgress(out.stderr, out.act, out.onTerminal())
		defer bar.finish()
		return t.Restore(out.ctx, id, to, repo.RestoreOptions{Blank: blank, Progress: bar.update, Lost: past.option()})
	}
	switch {
	case nbd.IsURI(out.to):
		return out.export(b.SizeBytes, func(to sink) error { return inOrderOfPacks(to, false) })
	case out.to != "-" && !out.qcow2():
		return out.file(b.SizeBytes, b.SizeBytes, func(image *image) error { return inOrderOfPacks(image, true) })
	}
	if past.asked() {
		return usagef("backup restore: --allow-damaged writes raw files and NBD exports; make a raw file, then convert it")
	}
	from, err := t.Layer(out.ctx, id)
	if err != nil {
		return err
	}
	defer from.Close()
	return out.write(from)
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
		return usagef("%s to %s: it is not a regular file; for a disk: varve %s … - | dd of=%s bs=4M", act, path, act, path)
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
