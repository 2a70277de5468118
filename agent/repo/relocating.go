package repo

import (
	"cmp"
	"maps"
	"slices"
)

// A relocating gathers rows in any order.
type relocating struct {
	packs   map[objectID]*movingPack
	objects []packRef
	index   map[packRef]uint32
	rows    int
}

type movingPack struct {
	class movedClass
	rows  []movedRow
	has   liveSet // the sections in rows
}

func newRelocating() *relocating {
	return &relocating{packs: make(map[objectID]*movingPack), index: make(map[packRef]uint32)}
}

// add says where a section is. There is one place for each.
func (g *relocating) add(from sectionKey, to *sectionPlace) {
	at, ok := g.index[to.pack]
	if !ok {
		at = uint32(len(g.objects))
		g.objects, g.index[to.pack] = append(g.objects, to.pack), at
	}
	p := g.packs[from.id]
	if p == nil {
		p = new(movingPack)
		g.packs[from.id] = p
	}
	p.has.take(from.number, to.stored)
	p.rows = append(p.rows, movedRow{from.number, at, to.number, uint32(to.off), to.stored, shapeByte(to.kind, to.blocks, to.zstd)})
	g.rows++
}

// has reports whether something is said of a section.
func (g *relocating) has(name sectionKey) bool {
	p := g.packs[name.id]
	return p != nil && p.has.has(name.number)
}

// setClass says how much of a pack was moved, if anything was.
func (g *relocating) setClass(id objectID, class movedClass) {
	if p := g.packs[id]; p != nil {
		p.class = class
	}
}

func (g *relocating) clone() *relocating {
	c := &relocating{packs: make(map[objectID]*movingPack, len(g.packs)), objects: slices.Clone(g.objects), index: maps.Clone(g.index), rows: g.rows}
	for id, p := range g.packs {
		q := *p
		q.rows, q.has.words = slices.Clone(p.rows), slices.Clone(p.has.words)
		c.packs[id] = &q
	}
	return c
}

// build orders the rows as they are written.
func (g *relocating) build() *relocations {
	l := &relocations{rows: make([]movedRow, 0, g.rows)}
	for id, p := range g.packs {
		l.packs = append(l.packs, movedPack{id: id, class: p.class})
	}
	slices.SortFunc(l.packs, func(a, b movedPack) int { return slices.Compare(a.id[:], b.id[:]) })
	renamed := make(map[uint32]uint32)
	for i := range l.packs {
		p := &l.packs[i]
		rows := g.packs[p.id].rows
		slices.SortFunc(rows, func(a, b movedRow) int { return cmp.Compare(a.section, b.section) })
		p.first = len(l.rows)
		for _, r := range rows {
			at, ok := renamed[r.object]
			if !ok {
				at = uint32(len(l.objects))
				l.objects, renamed[r.object] = append(l.objects, g.objects[r.object]), at
			}
			r.object = at
			l.rows = append(l.rows, r)
		}
		p.end = len(l.rows)
	}
	return l
}
