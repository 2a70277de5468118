package repo

import (
	"context"
	"errors"
	"fmt"

	"varve/layers"
)

// volumePlaces are where sections of a volume's packs are, by all relocations
// that are listed: what any of them leads to may be what a reader goes by.
type volumePlaces struct {
	objects  []*moveObject // as arranged puts them
	replaced map[*moveObject]bool
	old      map[*moveObject]bool // for a grace at least: every reader finds it
	from     map[objectID]movedClass
	err      error // one of them cannot be read: nobody knows what the volume needs

	named map[objectID]*liveSet // of from: what maps name
	whole map[objectID]bool     // of from: maps name all of it
	walks int                   // that looked for that: of the backups that are there, then of those deleted lately
}

// needs reports whether maps may name a section of a pack that was moved.
func (v *volumePlaces) needs(name sectionKey) bool {
	if v.walks < 2 || v.whole[name.id] {
		return true
	}
	s := v.named[name.id]
	return s != nil && s.has(name.number)
}

// name notes that maps name a section.
func (v *volumePlaces) name(name sectionKey) {
	if _, moved := v.from[name.id]; !moved {
		return
	}
	s := v.named[name.id]
	if s == nil {
		s = new(liveSet)
		v.named[name.id] = s
	}
	s.take(name.number, 0)
}

// first is where a section is that was written there.
func (v *volumePlaces) first(written sectionPlace) sectionPlace {
	if v == nil {
		return written
	}
	if to, ok := firstPlace(v.objects, sectionKey{written.pack.id, written.number}); ok && to.kind == written.kind {
		return to
	}
	return written
}

// readMoves reads the relocations of all volumes that have some.
func (p *prune) readMoves(ctx context.Context) error {
	p.places, p.targets = make(map[layers.ID]*volumePlaces), make(map[objectID]bool)
	for volume, listed := range p.moves {
		objects, err := p.repo.loadListed(ctx, volume, listed)
		if err != nil && !isDamage(err) {
			return err
		}
		if err != nil {
			p.keep(fmt.Errorf("volume %s: %w", volume, err))
		}
		v := &volumePlaces{
			objects: objects, err: err, from: make(map[objectID]movedClass), named: make(map[objectID]*liveSet), whole: make(map[objectID]bool),
			replaced: make(map[*moveObject]bool), old: make(map[*moveObject]bool),
		}
		written := make(map[string]listedMove, len(listed))
		for _, l := range listed {
			written[l.name] = l
		}
		gone := make(map[objectID]bool)
		for _, o := range objects {
			for _, id := range o.replaces {
				gone[id] = true
			}
		}
		for _, o := range objects {
			v.replaced[o] = gone[o.id]
			l, listed := written[o.name]
			v.old[o] = listed && p.age(l.modified) >= p.options.Grace
			for i := range o.packs {
				from := &o.packs[i]
				if class, known := v.from[from.id]; !known || class < from.class {
					v.from[from.id] = from.class
				}
			}
			for i := range o.objects {
				p.targets[o.objects[i].id] = false
				p.repo.reach.setVolume(o.objects[i].id.session(), volume)
			}
		}
		p.places[volume] = v
	}
	return nil
}

// emptied reports whether a pack may go though a backup is there that wrote it:
// all of it was moved.
func (p *prune) emptied(id objectID, volume layers.ID) bool {
	v := p.places[volume]
	return v != nil && v.err == nil && v.from[id] == movedAll
}

// noteTarget notes that a listing has a pack, if a relocation leads to it.
func (p *prune) noteTarget(id objectID) {
	if _, ok := p.targets[id]; ok {
		p.targets[id] = true
	}
}

// there reports whether a pack is in the store: by the listing, or by its name.
func (p *prune) there(ctx context.Context, where place, id objectID) (bool, error) {
	if p.freed[id] {
		return false, nil
	}
	if p.targets[id] {
		return true, nil
	}
	there, err := p.repo.exists(ctx, packName(where, id))
	if err != nil {
		return false, fmt.Errorf("look for a pack: %w", err)
	}
	if there {
		p.noteTarget(id)
	}
	return there, nil
}

// keepUnbacked takes from packs those whose content was moved to where it is not:
// a relocation that was under way for days may come after the packs that it
// leads to went.
func (p *prune) keepUnbacked(ctx context.Context, packs suspects) error {
	for id, s := range packs {
		if !s.moved {
			continue
		}
		for _, v := range p.places {
			if _, ok := v.from[id]; !ok {
				continue
			}
			whole, err := p.backed(ctx, v, id)
			if err != nil {
				return err
			}
			if !whole {
				p.keep(damaged(packName(s.where, id), 0, errors.New("a relocation leads from it to packs that are missing; it stays")))
				delete(packs, id)
			}
		}
	}
	return nil
}

// backed reports whether all packs are there that relocations lead to from one.
func (p *prune) backed(ctx context.Context, v *volumePlaces, id objectID) (bool, error) {
	for _, o := range v.objects {
		i, ok := o.at(id)
		if !ok {
			continue
		}
		seen := make(map[uint32]bool)
		for _, row := range o.rows[o.packs[i].first:o.packs[i].end] {
			if seen[row.object] {
				continue
			}
			seen[row.object] = true
			if there, err := p.there(ctx, inData, o.objects[row.object].id); err != nil || !there {
				return false, err
			}
		}
	}
	return true, nil
}
