package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"varve/layers"
)

// A listedMove is a relocation object as a listing has it.
type listedMove struct {
	name     string
	id       objectID
	size     int64
	modified time.Time // by the store's clock
}

// moves are what is known of relocations, by volume. Listings tell their names;
// they are read when a backup of the volume is opened, or when a section is not
// where it was written. It is safe for concurrent use.
type moves struct {
	mu      sync.Mutex
	volumes map[layers.ID]*volumeMoves
}

// volumeMoves are those of one volume.
type volumeMoves struct {
	reading chan struct{} // of one place: whoever reads is in there

	mu      sync.Mutex // all below
	listed  []listedMove
	asked   time.Time     // when somebody listed them for want of a section
	objects []*moveObject // that were read: those that are not replaced first, then the newest
}

// movesFresh is how long a listing of relocations is taken for true by those who
// miss a section.
const movesFresh = 10 * time.Second

// of returns what is known of a volume; nil if that is nothing and create is not
// asked for.
func (m *moves) of(volume layers.ID, create bool) *volumeMoves {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[volume]
	if v == nil && create {
		if m.volumes == nil {
			m.volumes = make(map[layers.ID]*volumeMoves)
		}
		v = &volumeMoves{reading: make(chan struct{}, 1)}
		m.volumes[volume] = v
	}
	return v
}

// learn takes in what a listing has of all volumes, or of one.
func (m *moves) learn(listed map[layers.ID][]listedMove, only layers.ID) {
	m.mu.Lock()
	volumes := make(map[layers.ID]*volumeMoves, len(m.volumes))
	for volume, v := range m.volumes {
		if only.IsZero() || volume == only {
			volumes[volume] = v
		}
	}
	m.mu.Unlock()
	for volume := range listed {
		volumes[volume] = m.of(volume, true)
	}
	for volume, v := range volumes {
		v.learn(listed[volume])
	}
}

// learn forgets what was listed before and is not any more: it was replaced.
func (v *volumeMoves) learn(listed []listedMove) {
	v.mu.Lock()
	defer v.mu.Unlock()
	gone := make(map[string]bool, len(v.listed))
	for _, l := range v.listed {
		gone[l.name] = true
	}
	for _, l := range listed {
		delete(gone, l.name)
	}
	v.listed = listed
	if len(gone) > 0 {
		v.objects = slices.DeleteFunc(slices.Clone(v.objects), func(o *moveObject) bool { return gone[o.name] })
	}
}

// add makes an object known.
func (m *moves) add(volume layers.ID, o *moveObject) {
	v := m.of(volume, true)
	v.mu.Lock()
	v.objects = arranged(append(slices.Clone(v.objects), o), v.listed)
	rows := 0
	for _, o := range v.objects {
		rows += len(o.rows)
	}
	v.mu.Unlock()
	m.trim(volume, rows)
}

// trim forgets the objects of other volumes if there are too many rows: who
// needs them reads them again.
func (m *moves) trim(keep layers.ID, rows int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for volume, v := range m.volumes {
		if volume == keep {
			continue
		}
		v.mu.Lock()
		for _, o := range v.objects {
			rows += len(o.rows)
		}
		if rows > maxRelocations {
			v.objects = nil
		}
		v.mu.Unlock()
	}
}

// arranged puts the objects that no other replaces first, and of each kind the
// newest; one that is not listed yet was written just now.
func arranged(objects []*moveObject, listed []listedMove) []*moveObject {
	replaced, written := make(map[objectID]bool), make(map[objectID]time.Time)
	for _, o := range objects {
		for _, id := range o.replaces {
			replaced[id] = true
		}
	}
	for _, l := range listed {
		written[l.id] = l.modified
	}
	age := func(o *moveObject) int64 {
		if at, ok := written[o.id]; ok {
			return -at.UnixNano()
		}
		return -1 << 63
	}
	rank := func(o *moveObject) int {
		if replaced[o.id] {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(objects, func(a, b *moveObject) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(age(a), age(b)), cmp.Compare(a.name, b.name))
	})
	return objects
}

// known are the objects that were read.
func (m *moves) known(volume layers.ID) []*moveObject {
	v := m.of(volume, false)
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.objects
}

// firstPlace is where a section is by objects; not ok: where it was written.
func firstPlace(objects []*moveObject, from sectionKey) (sectionPlace, bool) {
	for _, o := range objects {
		if to, ok := o.find(from); ok {
			return to, true
		}
	}
	return sectionPlace{}, false
}

// loadMoves reads the relocations of a volume that were listed last and are not
// read yet, and returns all of them. An error that is ErrCorrupt, or ErrVersion,
// is of those alone that it names: the others are returned.
func (r *Repo) loadMoves(ctx context.Context, volume layers.ID) ([]*moveObject, error) {
	v := r.moves.of(volume, false)
	if v == nil {
		return nil, nil
	}
	v.mu.Lock()
	listed := v.listed
	v.mu.Unlock()
	return r.loadListed(ctx, volume, listed)
}

// loadListed is loadMoves for relocations that some listing had.
func (r *Repo) loadListed(ctx context.Context, volume layers.ID, listed []listedMove) ([]*moveObject, error) {
	if len(listed) == 0 {
		return nil, nil
	}
	v := r.moves.of(volume, true)
	select {
	case v.reading <- struct{}{}:
		defer func() { <-v.reading }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	v.mu.Lock()
	known := make(map[string]*moveObject, len(v.objects))
	for _, o := range v.objects {
		known[o.name] = o
	}
	v.mu.Unlock()
	var found []*moveObject
	var bad error
	for _, l := range listed {
		o := known[l.name]
		if o == nil {
			var err error
			o, err = r.readMoves(ctx, l)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue // it was replaced since it was listed
			case isDamage(err):
				bad = errors.Join(bad, err)
				continue
			case err != nil:
				return nil, fmt.Errorf("read relocation: %w", err)
			}
			r.moves.add(volume, o)
		}
		found = append(found, o)
	}
	return arranged(found, listed), bad
}

func (r *Repo) readMoves(ctx context.Context, l listedMove) (*moveObject, error) {
	limit := int64(relocationLimit)
	if l.size > 0 {
		limit = min(limit, l.size)
	}
	b, err := r.readAll(ctx, l.name, limit)
	if err != nil {
		return nil, err
	}
	o, err := r.parseRelocation(l.name, b)
	if err != nil {
		return nil, damaged(l.name, 0, err)
	}
	o.size = int64(len(b))
	return o, nil
}

// refreshMoves lists the relocations of a volume and reads the new ones, unless
// somebody did just now. Those that cannot be read are passed over: what they
// would have said stays damaged.
func (r *Repo) refreshMoves(ctx context.Context, volume layers.ID) error {
	v := r.moves.of(volume, true)
	v.mu.Lock()
	fresh := !v.asked.IsZero() && time.Since(v.asked) < movesFresh
	v.mu.Unlock()
	if !fresh {
		var listed []listedMove
		for info, err := range r.store.List(ctx, relocationPrefix(volume)) {
			if err != nil {
				return fmt.Errorf("list relocations: %w", err)
			}
			if _, id, ok := parseRelocationName(info.Name); ok {
				listed = append(listed, listedMove{info.Name, id, info.Size, info.Modified})
			}
		}
		v.learn(listed)
		v.mu.Lock()
		v.asked = time.Now()
		v.mu.Unlock()
	}
	if _, err := r.loadMoves(ctx, volume); err != nil && !isDamage(err) {
		return err
	}
	return nil
}

// openMoved reads a section elsewhere: at its other places, and where it was
// written. It could not be read at one of them, tried, for err, which it returns
// if there is none. name is what maps call it.
func (r *Repo) openMoved(ctx context.Context, name sectionKey, written, tried sectionPlace, err error) (*sectionPlace, []byte, error) {
	if !errors.Is(err, ErrCorrupt) {
		return nil, nil, err
	}
	volume := written.pack.key.volume
	seen := map[sectionPlace]bool{tried: true}
	for range 2 {
		places := []sectionPlace{}
		for _, o := range r.moves.known(volume) {
			if to, ok := o.find(name); ok && to.kind == written.kind && to.blocks == written.blocks {
				places = append(places, to)
			}
		}
		for _, to := range append(places, written) {
			if seen[to] {
				continue
			}
			seen[to] = true
			text, other := r.openPlace(ctx, &to)
			if other == nil {
				return &to, text, nil
			}
			if !errors.Is(other, ErrCorrupt) {
				return nil, nil, other
			}
		}
		if other := r.refreshMoves(ctx, volume); other != nil {
			return nil, nil, other
		}
	}
	return nil, nil, err
}

// openPlace reads a section and opens it.
func (r *Repo) openPlace(ctx context.Context, at *sectionPlace) ([]byte, error) {
	name := packName(at.where, at.pack.id)
	key, err := r.volumeKey(ctx, at.pack.key)
	if err != nil {
		return nil, err
	}
	b := make([]byte, at.stored)
	if err := r.readRange(ctx, name, b, at.off); err != nil {
		return nil, err
	}
	text, err := key.sealer(at.pack.id).open(b, at.kind, at.number, nil)
	if err != nil {
		return nil, damaged(name, at.off, err)
	}
	return text, nil
}

// elsewhere reports whether a frame has another place than this one.
func (r *Repo) elsewhere(ctx context.Context, w *wanted) (bool, error) {
	volume, here := w.pack.key.volume, w.place()
	look := func() bool {
		for _, o := range r.moves.known(volume) {
			if to, ok := o.find(w.name()); ok && to != here {
				return true
			}
		}
		return false
	}
	if look() {
		return true, nil
	}
	err := r.refreshMoves(ctx, volume)
	return err == nil && look(), err
}

// allElsewhere reports whether all frames have another place than this one.
func (r *Repo) allElsewhere(ctx context.Context, frames []wanted) (bool, error) {
	for i := range frames {
		if other, err := r.elsewhere(ctx, &frames[i]); err != nil || !other {
			return false, err
		}
	}
	return true, nil
}
