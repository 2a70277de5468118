package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
)

// A clone is a volume whose lower layers are hard links to those of another. The
// file system counts the names of a file, in the transaction that makes or
// removes one, so the count that says who needs a layer survives every crash.
//
// A layer that more than one volume has is never changed, but for one thing: its
// checksums are made, if they were not yet. All who share it do that alike: the
// same bytes at the same places, from the same page of the map. So it does not
// matter who does it, how many do, or that one of them is cut off half-way.
//
// The flag "shared" stands in a chain before the first link is made, and goes
// when no link is left, so that a volume without clones asks the file system
// nothing.

// Clone makes a new volume in dir, which must not exist or be empty, from a
// snapshot of v, and opens it. It copies nothing: the two share the layers, and
// what is written to either never shows in the other. The clone has the
// snapshot's size and no snapshots of its own. v is read and written meanwhile;
// either may be deleted first, and a shared layer takes its space until both are.
//
// dir must be on the file system of v. Where that has no hard links, or no more
// of them, the error says so. A snapshot that is not there is fs.ErrNotExist, a
// directory that is not empty fs.ErrExist. After an error, or a crash, there is
// no volume in dir; Remove clears away what a crash left.
func (v *Volume) Clone(dir string, id, snapshot ID, o Options) (*Volume, error) {
	d, err := newDirectory(dir)
	var clone *Volume
	if err == nil {
		clone, err = finishVolume(d, o, v.cloneTo(d, id, snapshot))
	}
	if err != nil {
		return nil, fmt.Errorf("clone snapshot %s of volume %s to %s: %w", snapshot, v.id, dir, err)
	}
	return clone, nil
}

// cloneTo writes the files of a clone. While the links are made nothing tidies
// v; afterwards their number keeps the layers as they are.
func (v *Volume) cloneTo(d disk, id, snapshot ID) error {
	if id.IsZero() || id == v.id {
		return fmt.Errorf("id %s: the clone needs one of its own: %w", id, fs.ErrInvalid)
	}
	below, err := v.lend(d, snapshot)
	if err != nil {
		return err
	}
	return writeVolume(d, id, below[len(below)-1].Size, below, v.tuning)
}

// lend links the layers of a snapshot into another directory, and returns their
// records for the chain there.
func (v *Volume) lend(d disk, snapshot ID) ([]layerRecord, error) {
	v.tidying.Lock()
	defer v.tidying.Unlock()
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.writable(); err != nil {
		return nil, err
	}
	at := v.chain.find(snapshot)
	if at < 0 || v.chain.Layers[at].Flags != flagSnapshot {
		return nil, fs.ErrNotExist
	}
	if err := v.settleBelow(at); err != nil {
		return nil, err
	}
	if err := v.markShared(at); err != nil {
		return nil, err
	}
	var below []layerRecord
	for _, i := range slices.Backward(v.chain.line(at)) {
		r := v.chain.Layers[i]
		r.Boundary, r.Flags, r.Parent = ID{}, 0, len(below)-1
		if r.Origin.IsZero() {
			r.Origin = v.id
		}
		for _, name := range []string{dataName(r.ID), mapName(r.ID)} {
			if err := v.d.link(name, d); err != nil {
				return nil, explainLink(err, v.d.path(name), d.path(name))
			}
		}
		below = append(below, r)
	}
	return below, nil
}

// settleBelow makes the maps of a sealed layer and of those below it complete
// on disk, so that no record of the journal is needed to read them.
func (v *Volume) settleBelow(at int) error {
	v.meta.Lock()
	settled := !slices.ContainsFunc(v.chain.line(at), func(i int) bool { return slices.Contains(v.unsettled, v.files[i]) })
	v.meta.Unlock()
	if settled {
		return nil
	}
	return v.checkpoint()
}

// markShared says in the chain that other volumes may have a layer and those
// below it. The caller holds tidying and admin.
func (v *Volume) markShared(at int) error {
	line := v.chain.line(at)
	if !slices.ContainsFunc(line, func(i int) bool { return !v.chain.Layers[i].Shared }) {
		return nil
	}
	return v.setChain(func(c *chain) {
		for _, i := range line {
			c.Layers[i].Shared = true
		}
	})
}

// explainLink says what a file system lacks that refuses a hard link.
func explainLink(err error, from, to string) error {
	why := ""
	switch {
	case errors.Is(err, syscall.EXDEV):
		why = "a clone must be on the file system of its origin"
	case errors.Is(err, syscall.EMLINK):
		why = "the file system allows no more links to a file: remove other clones, or restore a backup instead"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		why = "the file system has no hard links, which clones need: restore a backup instead"
	default:
		return err
	}
	return fmt.Errorf("link %s to %s: %s: %w", filepath.Base(from), filepath.Dir(to), why, err)
}

// lent reports whether other volumes have the files of a layer now.
func (r *layerRecord) lent(l *layerFile) (bool, error) {
	if !r.Shared {
		return false, nil
	}
	for _, f := range []file{l.data, l.maps} {
		if st, err := f.stat(); err != nil || st.names > 1 {
			return true, err
		}
	}
	return false, nil
}

// ownStep takes the flag from a layer that no other volume has any more. Its
// checksums came first: without them a page of its map may be torn.
func (v *Volume) ownStep(t *tree) (bool, error) {
	for i := range t.links {
		if l := &t.links[i]; l.shared && !l.lent && l.settled {
			return true, v.changeRecord(l.layerFile, func(r *layerRecord) { r.Shared = false })
		}
	}
	return false, nil
}

// Lent returns how many layers that this volume made are shared with clones. As
// long as it is not zero, a clone needs them. Layers that the volume has as a
// clone itself do not count.
func (v *Volume) Lent() (int, error) {
	v.mu.RLock() // what is in the stack is open
	defer v.mu.RUnlock()
	if v.closed.Load() {
		return 0, v.errClosed()
	}
	count := 0
	for i := range v.chain.Layers {
		r := &v.chain.Layers[i]
		lent, err := r.lent(v.files[i])
		if err != nil {
			return 0, fmt.Errorf("clones of volume %s: %w", v.id, err)
		}
		if lent && r.Origin.IsZero() {
			count++
		}
	}
	return count, nil
}
