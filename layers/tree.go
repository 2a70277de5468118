package layers

import (
	"fmt"
	"hash/fnv"
	"slices"
)

// A tree is the chain as one step of tidying sees it.
type tree struct{ links []link } // in the order of the chain

// link is a layer in a tree.
type link struct {
	*layerFile
	size    int64   // bytes, as the chain says
	up      []*link // what lies right on it
	below   *link   // what it lies on; nil: the root
	head    bool
	kept    bool // readers need the boundary above: snapshot or view; or it is the head
	bound   bool // there is a boundary: kept, or a mark
	settled bool // sealed, and the journal has no record of it: it may be changed
	shared  bool // the chain says that other volumes may have the files
	lent    bool // they do: nothing may be taken away

	snapshot bool // the boundary is one
	boundary ID
}

// tree returns the chain as it is now. The caller holds tidying, so nobody here
// shares a layer meanwhile; and one that no other volume has, none can share.
func (v *Volume) tree() (*tree, error) {
	v.mu.RLock()
	at := v.standing()
	v.mu.RUnlock()
	return v.treeOf(at)
}

// standing is the chain at an instant.
type standing struct {
	chain  *chain
	files  []*layerFile
	viewed map[*layerFile]bool // the boundary above has an open view
}

// standing returns the chain as it is. The caller holds mu.
func (v *Volume) standing() standing {
	s := standing{chain: v.chain, files: v.files, viewed: map[*layerFile]bool{}}
	for l, a := range v.anchors {
		if a.views > 0 {
			s.viewed[l] = true
		}
	}
	return s
}

// treeOf makes a tree. A layer that was sealed since the instant is the head in
// it, which is as good: nothing is taken from either.
func (v *Volume) treeOf(at standing) (*tree, error) {
	v.meta.Lock()
	unsettled := slices.Clone(v.unsettled)
	v.meta.Unlock()
	t := &tree{make([]link, len(at.files))}
	for i, l := range at.files {
		r := &at.chain.Layers[i]
		lent, err := r.lent(l)
		if err != nil {
			return nil, err
		}
		n := &t.links[i]
		head := i == at.chain.Head
		kept := head || r.Flags == flagSnapshot || at.viewed[l]
		*n = link{
			layerFile: l, size: r.Size, head: head, kept: kept, bound: kept || r.Flags != 0,
			settled: !head && !slices.Contains(unsettled, l), shared: r.Shared, lent: lent,
			snapshot: r.Flags == flagSnapshot, boundary: r.Boundary,
		}
		if r.Parent >= 0 {
			n.below = &t.links[r.Parent]
			n.below.up = append(n.below.up, n)
		}
	}
	return t, nil
}

// hiders calls f with the layers that may hide blocks of l from whoever reads
// it: those above, up to the next boundary that is kept on each branch.
func (l *link) hiders(f func(*link)) {
	for _, up := range l.up {
		f(up)
		if !up.kept {
			up.hiders(f)
		}
	}
}

// hiding is the blocks of a group of a layer that layers above hide; the low bit
// of each pair.
type hiding struct {
	far  [pageWords]uint64 // from every reader
	near [pageWords]uint64 // of far, those that are hidden before there is a boundary
}

// hidingAs says how layers hide.
type hidingAs struct {
	load  func(l *link, g uint32, into *kindBits) error // what a layer says
	given *link                                         // is taken for one that is not kept; nil: none
}

// durably is how layers hide with what no crash takes back.
var durably = hidingAs{load: func(l *link, g uint32, into *kindBits) error { return l.loadDurable(g, into) }}

// hidden finds what is hidden of group g of l: on each branch above it, by a
// layer up to the next boundary that is kept. Where no such boundary is, nobody
// reads.
func (l *link) hidden(g uint32, as hidingAs) (*hiding, error) {
	h := new(hiding)
	if l.kept && l != as.given {
		return h, nil
	}
	for i := range h.far {
		h.far[i], h.near[i] = lowBits, lowBits
	}
	for _, up := range l.up {
		above, err := up.hidden(g, as)
		if err != nil {
			return nil, err
		}
		var kinds kindBits
		if err := as.load(up, g, &kinds); err != nil {
			return nil, err
		}
		for i, w := range kinds {
			h.far[i] &= says(w) | above.far[i]
			h.near[i] &= says(w) | above.near[i]
		}
	}
	if l.bound {
		h.near = [pageWords]uint64{}
	}
	return h, nil
}

// shape is a number that changes when the layers that may hide blocks of l, or
// what they end at, are others than before.
func (l *link) shape() uint64 {
	h := fnv.New64a()
	add := func(n *link) {
		fmt.Fprintf(h, "%s %d %v %v\n", n.id, len(n.up), n.bound, n.kept) // a hash never fails
	}
	add(l)
	l.hiders(add)
	return h.Sum64()
}
