package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// sources are the folders whose files fill the image, in this order, as far as
// there is room: source code, documents, programs and libraries.
func sources() []string {
	return []string{runtime.GOROOT(), "/usr/share", "/usr/bin", "/usr/lib"}
}

// makeImage makes an ext4 file system of the given size with real files in it.
// Four fifths of it are files if the machine has that many; the rest are holes.
func (b *bench) makeImage(ctx context.Context, path string, size int64) error {
	tree := path + ".tree"
	if err := os.Mkdir(tree, 0o700); err != nil {
		return err
	}
	left := size / 5 * 4
	err := func() error {
		for i, from := range sources() {
			if err := copyTree(ctx, filepath.Join(tree, fmt.Sprint(i)), from, &left); err != nil {
				return err
			}
		}
		if _, err := (task{}).run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path, fmt.Sprintf("%dk", size>>10)); err != nil {
			return err
		}
		return nil
	}()
	return errors.Join(err, os.RemoveAll(tree))
}

// errFull ends a walk when there is no more room in the image.
var errFull = errors.New("full")

// copyTree copies the regular files below from to below to until left bytes
// are used up. Each file counts as whole blocks and an inode. What cannot be
// read, and what is not there, is passed over: any files will do.
func copyTree(ctx context.Context, to, from string, left *int64) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		need := (info.Size()+blockSize-1)/blockSize*blockSize + 256
		if need > *left {
			return errFull
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		*left -= need
		return copyFile(filepath.Join(to, rel), path)
	})
	if errors.Is(err, errFull) {
		return nil
	}
	return err
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close() // read only
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// equal reports an error unless two readers hold the same size bytes.
func equal(ctx context.Context, got, want io.ReaderAt, size int64) error {
	a, b := make([]byte, chunkSize), make([]byte, chunkSize)
	for off := int64(0); off < size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunkSize, size-off)
		if _, err := got.ReadAt(a[:n], off); err != nil {
			return err
		}
		if _, err := want.ReadAt(b[:n], off); err != nil {
			return err
		}
		if !slices.Equal(a[:n], b[:n]) {
			return fmt.Errorf("the restored image differs from the original in [%d, %d)", off, off+n)
		}
	}
	return nil
}
