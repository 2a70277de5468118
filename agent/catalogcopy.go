package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"varve/catalog"
)

// A file beside the catalog holds a copy of what nothing else knows: the names
// of volumes and snapshots, targets, attachments and the quota. A catalog that
// is lost begins with it. It is a few seconds behind after a crash.

// copyName is the copy's name in the state folder.
const copyName = "catalog.copy"

// copyPause is the least time between two writings of the copy.
const copyPause = 5 * time.Second

// A catalogCopy remembers what the copy on disk holds.
type catalogCopy struct {
	changed chan struct{} // holds one: the catalog may have changed
	written [sha256.Size]byte
	failing bool
}

// outdated says that the catalog may have changed.
func (c *catalogCopy) outdated() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// keepCopy writes the copy anew after changes, until ctx ends.
func (a *Agent) keepCopy(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-a.copy.changed:
		case <-ctx.Done():
			return
		}
		err := a.writeCopy()
		if err != nil && !a.copy.failing {
			a.log.Warn("the copy of the catalog is not up to date", "error", err)
		}
		a.copy.failing = err != nil
		if err != nil {
			a.copy.outdated()
		}
		pause.Reset(copyPause)
	}
}

// writeCopy writes the copy if it would be another one.
func (a *Agent) writeCopy() error {
	if fresh, err := a.catalog.Fresh(); err != nil || fresh {
		return err // The copy may still be needed.
	}
	var text bytes.Buffer
	if err := a.catalog.Copy(&text); err != nil {
		return err
	}
	sum := sha256.Sum256(text.Bytes())
	if sum == a.copy.written {
		return nil
	}
	if err := replaceFile(filepath.Join(a.config.State, copyName), text.Bytes()); err != nil {
		return fmt.Errorf("write the copy of the catalog: %w", err)
	}
	a.copy.written = sum
	return nil
}

// replaceFile gives a file, readable for its owner only, new content: after a
// crash it has the old or the new.
func replaceFile(path string, content []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

// adoptCopy fills a catalog that is new with the copy of the one before, if
// there is one. What it says of volumes that are gone is left out.
func (a *Agent) adoptCopy() error {
	fresh, err := a.catalog.Fresh()
	if err != nil || !fresh {
		return err
	}
	if err := a.loadCopy(); err != nil {
		return err
	}
	err = a.update(func(tx *catalog.Tx) error { return errors.Join(a.forgetMissing(tx), a.forgetSyncs(tx)) })
	if err != nil {
		return fmt.Errorf("take in the copy of the catalog: %w", err)
	}
	return a.catalog.Settle()
}

// loadCopy loads as much of the copy as can be read. Only a catalog that fails,
// or a copy of a newer version, is an error.
func (a *Agent) loadCopy() error {
	path := filepath.Join(a.config.State, copyName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail(Unavailable, "read the copy of the catalog: %w", err)
	}
	defer f.Close() // Nothing was written.
	n, err := a.catalog.Load(f)
	switch {
	case errors.Is(err, catalog.ErrVersion):
		return fail(Conflict, "%s: %w", path, err)
	case errors.Is(err, catalog.ErrClosed), errors.Is(err, catalog.ErrFull), errors.Is(err, catalog.ErrReadOnly):
		return fail(Unavailable, "%w", err)
	case err != nil:
		a.log.Error("the copy of the catalog is damaged; what could be read of it is used", "path", path, "error", err)
	}
	if n > 0 {
		a.log.Warn("there was no catalog: it begins with the copy of the one before", "records", n)
	}
	return nil
}

// forgetMissing drops the volumes whose folder is not there, their snapshots
// and attachments.
func (a *Agent) forgetMissing(tx *catalog.Tx) error {
	var errs []error
	there := map[string]bool{}
	for _, v := range all(a, tx, catalog.Volumes) {
		if _, err := os.Stat(a.volumeDir(v.ID)); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, catalog.Volumes.Delete(tx, v.ID))
			continue
		}
		there[v.ID.String()] = true
	}
	for _, s := range all(a, tx, catalog.Snapshots) {
		if !there[s.VolumeID.String()] {
			errs = append(errs, catalog.Snapshots.Delete(tx, s.ID))
		}
	}
	for _, at := range all(a, tx, catalog.Attachments) {
		if !there[at.VolumeID.String()] {
			errs = append(errs, catalog.Attachments.Delete(tx, at.ID))
		}
	}
	return errors.Join(errs...)
}

// forgetSyncs makes the targets ones whose backups nobody has looked for yet:
// until then no mark is given up.
func (a *Agent) forgetSyncs(tx *catalog.Tx) error {
	var errs []error
	for _, t := range all(a, tx, catalog.Targets) {
		t.Synced = time.Time{}
		errs = append(errs, catalog.Targets.Put(tx, t))
	}
	return errors.Join(errs...)
}
