package object

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// What lies in the folder of a Dir besides the objects. No object can have
// these names: CheckName knows no capitals.
const (
	markerName  = "VARVE-TARGET" // says that this is the folder, and not an empty mount point
	stagingName = "VARVE-TMP"    // Puts under way
)

const markerText = `This folder is a Varve backup target. The files in it belong together: leave them
to Varve. Without this file Varve takes the folder for one that is not mounted.
`

// maxMarker is how much of a marker is compared.
const maxMarker = 4 << 10

// newMarker is the text of a marker that no other folder has.
func newMarker() []byte { return []byte(markerText + "Target " + rand.Text() + "\n") }

// mark puts the marker into the folder, or leaves the one that somebody else put
// there in the same instant: it must never change once it was looked at. Where
// the file system has no second names, that instant is not guarded.
func (d *dir) mark() error {
	staged, err := d.stage(context.Background(), newMarker())
	if err != nil {
		return err
	}
	path := filepath.Join(d.root, markerName)
	switch err := os.Link(staged, path); {
	case err == nil, errors.Is(err, fs.ErrExist):
		os.Remove(staged) // What stays is swept.
	default:
		if err := os.Rename(staged, path); err != nil {
			os.Remove(staged)
			return err
		}
	}
	return syncFolder(d.root)
}

// A marker remembers which file marked the folder when it was first looked at.
type marker struct {
	mu   sync.Mutex
	file os.FileInfo // nil: it was not looked at yet
	text []byte
}

// present returns nil if the folder is there, is one of ours, and is the one that
// it was before. Its error never is fs.ErrNotExist.
func (d *dir) present() error {
	path := filepath.Join(d.root, markerName)
	info, err := os.Lstat(path)
	switch {
	case err == nil:
		return d.marker.compare(path, info)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		if info, err := os.Stat(d.root); err == nil && !info.IsDir() {
			return errors.New("not a folder")
		} else if err != nil {
			return fmt.Errorf("the folder does not exist; %w A new one must be created first", ErrAway)
		}
		return fmt.Errorf("the folder is there, but is not a Varve target (no file %s in it); %w "+
			"A new target must be created first", markerName, ErrAway)
	}
	return err
}

// compare returns nil if the marker is the file that it was, or one with the
// same text: a target may be moved, and a file system be mounted again.
func (m *marker) compare(path string, info os.FileInfo) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// A file system may give a new file the number of one that was removed.
	if m.file != nil && os.SameFile(m.file, info) && m.file.ModTime().Equal(info.ModTime()) {
		return nil
	}
	text, err := readMarker(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the folder went away; %w", ErrAway)
	case err != nil:
		return err
	case m.file != nil && !bytes.Equal(text, m.text):
		return fmt.Errorf("another target lies in the folder now (its %s is not the one that was there); %w", markerName, ErrAway)
	}
	m.file, m.text = info, text
	return nil
}

func readMarker(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // Somebody's pipe would never answer.
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	return io.ReadAll(io.LimitReader(f, maxMarker))
}
