package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"varve/layers"
)

// An index remembers what listings said about names, so that a backup is found
// by its ID alone without another listing. It is only a cache: what it says
// about tombstones is checked against the store.
type index struct {
	mu    sync.Mutex
	roots map[layers.ID]listedRoot
	keys  map[layers.ID]keyRef // the newest of each volume

	standings map[layers.ID]*standing // by volume
}

// A listedRoot is a root as a listing has it.
type listedRoot struct {
	name     rootName
	size     int64     // bytes; 0: not known
	modified time.Time // by the store's clock; zero: not known
	held     bool      // it is protected
}

func newIndex() *index {
	return &index{roots: make(map[layers.ID]listedRoot), keys: make(map[layers.ID]keyRef), standings: make(map[layers.ID]*standing)}
}

func (x *index) add(r listedRoot) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.roots[r.name.backup] = r
}

func (x *index) addKey(ref keyRef) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old, ok := x.keys[ref.volume]; !ok || old.epoch <= ref.epoch {
		x.keys[ref.volume] = ref
	}
}

func (x *index) find(id layers.ID) (listedRoot, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.roots[id]
	return r, ok
}

func (x *index) forget(id layers.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.roots, id)
	x.forgetStanding(id)
}

// newestKey returns the newest key of the volume that a listing had.
func (x *index) newestKey(volume layers.ID) (keyRef, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ref, ok := x.keys[volume]
	return ref, ok
}

// A listing is what stands below v/, or below one volume there.
type listing struct {
	roots    []listedRoot // by volume, then claim epoch, then number
	deleted  map[layers.ID]bool
	stones   []listedStone
	holds    map[layers.ID][]string      // names of the objects that protect a backup
	moves    map[layers.ID][]listedMove  // by volume
	captions map[layers.ID][]captionName // by backup
	newest   time.Time                   // of all objects listed: the store's clock is past it
}

// root returns what the listing has of a root.
func (l *listing) root(name rootName) (listedRoot, bool) {
	for _, root := range l.roots {
		if root.name == name {
			return root, true
		}
	}
	return listedRoot{}, false
}

// list reads the names below a prefix and teaches them to the index. Names that
// are not of this format are passed over: no backup can be behind them, and a
// foreign object must not hide those that are there.
func (r *Repo) list(ctx context.Context, prefix string) (*listing, error) {
	asked := r.moment()
	l := &listing{deleted: make(map[layers.ID]bool), holds: make(map[layers.ID][]string), moves: make(map[layers.ID][]listedMove), captions: make(map[layers.ID][]captionName)}
	for info, err := range r.store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		if info.Modified.After(l.newest) {
			l.newest = info.Modified
		}
		name, ok := parseVolumeName(info.Name)
		if !ok {
			continue
		}
		switch name.kind {
		case "b":
			root, ok := name.root()
			if !ok {
				continue
			}
			l.roots = append(l.roots, listedRoot{name: root, size: info.Size, modified: info.Modified})
		case "d":
			if id, ok := name.tombstone(); ok {
				l.deleted[id] = true
				l.stones = append(l.stones, listedStone{name.volume, id, info.Size, info.Modified})
			}
		case "h":
			if id, ok := name.hold(); ok {
				l.holds[id] = append(l.holds[id], info.Name)
			}
		case "n":
			if caption, ok := name.caption(); ok {
				l.captions[caption.backup] = append(l.captions[caption.backup], caption)
				r.captions.note(caption)
			}
		case "r":
			if id, ok := name.relocation(); ok {
				l.moves[name.volume] = append(l.moves[name.volume], listedMove{info.Name, id, info.Size, info.Modified})
			}
		case "c":
			if claim, ok := name.claim(); ok {
				r.claims.note(claim)
			}
		case "k":
			if ref, ok := name.key(); ok {
				r.index.addKey(ref)
			}
		}
	}
	for i := range l.roots {
		l.roots[i].held = len(l.holds[l.roots[i].name.backup]) > 0
		r.index.add(l.roots[i])
	}
	for id := range l.deleted {
		r.index.forget(id)
		r.captions.forget(id)
	}
	r.confirm(l, asked)
	var only layers.ID
	if prefix != volumesRoot {
		only, _ = layers.ParseID(strings.Trim(prefix[len(volumesRoot):], "/"))
	}
	r.moves.learn(l.moves, only)
	return l, nil
}

// find returns the root of a backup. fresh says that a listing was just made,
// so that nothing is to be asked about tombstones.
func (r *Repo) find(ctx context.Context, id layers.ID) (root listedRoot, fresh bool, err error) {
	if root, ok := r.index.find(id); ok {
		return root, false, nil
	}
	l, err := r.list(ctx, volumesRoot)
	if err != nil {
		return root, false, err
	}
	for _, root := range l.roots {
		if root.name.backup == id && !l.deleted[id] {
			return root, true, nil
		}
	}
	return root, false, absent(id)
}

func absent(id layers.ID) error {
	return fmt.Errorf("backup %s: %w in repository", id, fs.ErrNotExist)
}

// checkLive asks for the tombstone of a backup that the index knew, as another
// host may have deleted it since.
func (r *Repo) checkLive(ctx context.Context, name rootName) error {
	var p [1]byte
	_, err := r.store.Get(ctx, tombstoneName(name.volume, name.backup), p[:], 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for the tombstone of backup %s: %w", name.backup, err)
	}
	r.index.forget(name.backup)
	return absent(name.backup)
}
