package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"varve/layers"
)

// Repacking copies what is needed of packs that waste space, and of small ones,
// into new packs; relocations then say where each section is. The old packs go
// as all others do that nobody needs: design.md, section 7, "Repacking".

// RepackBelow is what an operator repacks below, unless told otherwise: packs of
// which less than so many hundredths are needed.
const RepackBelow = 60

const (
	repackWin  = 32      // at least this part of a full pack is won by copying one
	smallPacks = 4       // a pack below this part of a full one is small
	mergePacks = 8       // small packs of a volume are copied together, so many at least
	sourcesMax = 1 << 16 // packs that one run copies
)

// repacks reports whether this run copies packs, or would.
func (p *prune) repacks() bool { return p.options.RepackBelow > 0 }

// A source is a pack whose sections are to be copied.
type source struct {
	packSize
	all  bool    // every section is needed
	live liveSet // otherwise those
}

// bytes is what is to be copied.
func (s *source) bytes() int64 {
	if s.all {
		return s.size
	}
	return s.live.bytes
}

// sources are the packs of one volume that may be copied.
type sources struct {
	wasteful, small []source
}

func (p *prune) sourcesOf(volume layers.ID) *sources {
	s := p.sources[volume]
	if s == nil {
		s = new(sources)
		p.sources[volume] = s
	}
	return s
}

func (p *prune) isSmall(size int64) bool { return size < int64(p.repo.packTarget/smallPacks) }

// considerOwned looks at a pack of a backup that is there: all of it is needed.
func (p *prune) considerOwned(s *suspect, o owner) {
	if !p.repacks() || o.running || !p.isSmall(s.size) || p.age(s.modified) < p.options.Grace || p.considered >= sourcesMax {
		return
	}
	if _, deleted := p.stones[o.root.backup]; deleted {
		return
	}
	p.considered++
	v := p.sourcesOf(o.root.volume)
	v.small = append(v.small, source{packSize: s.packSize, all: true})
}

// considerAll looks at packs of backups that are not there, and at what earlier
// runs wrote: garbage are those of which nothing is needed.
func (p *prune) considerAll(ctx context.Context, packs, garbage suspects) error {
	// What was deleted lately may be built on.
	if err := p.mark(ctx, p.fading, maps.Clone(packs), true); err != nil {
		return err
	}
	for id, s := range packs {
		volume := p.owners[id.session()].root.volume
		if volume.IsZero() {
			volume, _ = p.repo.reach.volume(id.session())
		}
		if garbage[id] != nil || volume.IsZero() || p.age(s.modified) < p.options.Grace || s.live.bytes == 0 || p.considered >= sourcesMax {
			continue
		}
		live := s.live.bytes
		wasteful := live*100 < s.size*int64(p.options.RepackBelow) && s.size-live >= int64(p.repo.packTarget/repackWin)
		if !wasteful && !p.isSmall(s.size) {
			continue
		}
		p.considered++
		v, from := p.sourcesOf(volume), source{packSize: s.packSize, live: s.live}
		if wasteful {
			v.wasteful = append(v.wasteful, from)
		} else {
			v.small = append(v.small, from)
		}
	}
	return nil
}

// chosen are the packs of a volume to be copied, in the order of their names:
// that of addresses, for those that one backup wrote.
func (s *sources) chosen(merge int) []source {
	all := s.wasteful
	if len(s.small) >= merge {
		all = append(all, s.small...)
	}
	slices.SortFunc(all, func(a, b source) int {
		return cmp.Or(cmp.Compare(a.where, b.where), slices.Compare(a.id[:], b.id[:]))
	})
	return all
}

// repack copies what is worth it, volume by volume, and lets one relocation
// stand for several. It ends early when the survey grows too old to go by.
func (p *prune) repack(ctx context.Context) error {
	if !p.repacks() {
		return nil
	}
	volumes := make(map[layers.ID]bool)
	for volume := range p.sources {
		volumes[volume] = true
	}
	for volume := range p.places {
		volumes[volume] = true
	}
	for _, volume := range slices.SortedFunc(maps.Keys(volumes), func(a, b layers.ID) int { return slices.Compare(a[:], b[:]) }) {
		v := p.places[volume]
		if p.unclear[volume] || v != nil && v.err != nil {
			continue
		}
		var from []source
		if s := p.sources[volume]; s != nil {
			from = s.chosen(p.repo.mergePacks)
		}
		copied := int64(0)
		for i := range from {
			p.report.Repacked.add(from[i].size)
			copied += from[i].bytes()
		}
		p.progress(0, copied)
		if p.options.DryRun {
			full := int64(p.repo.packTarget)
			p.report.Rewritten.Objects += (copied + full - 1) / full
			p.report.Rewritten.Bytes += copied
			continue
		}
		k := newRepacker(p, volume)
		err := k.run(ctx, from)
		if errors.Is(err, errLate) {
			p.keep(fmt.Errorf("volume %s: %w", volume, err))
			return nil
		}
		if isDamage(err) {
			p.keep(fmt.Errorf("volume %s is not repacked: %w", volume, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("repack volume %s: %w", volume, err)
		}
	}
	return nil
}

// merges reports whether one relocation is to stand for those of a volume:
// there are several, or most of what it says is needed no more.
func (v *volumePlaces) merges() bool {
	if v == nil || v.err != nil {
		return false
	}
	alone, rows, idle := 0, 0, 0
	for _, o := range v.objects {
		if v.replaced[o] {
			continue
		}
		alone++
		rows += len(o.rows)
		for name := range o.names() {
			if !v.needs(name) {
				idle++
			}
		}
	}
	return alone > 1 || idle > rows/2 && idle < rows
}
