package repo

import (
	"cmp"
	"slices"

	"varve/layers"
)

// A neededFrame is a frame of a damaged pack that backups need.
type neededFrame struct {
	pack       packRef
	frame      frameRef
	name       sectionKey         // what maps call it
	blocks     [frameBlocks]int64 // of the volume, by place in the frame; -1: nobody needs it
	volume     layers.ID          // that needs it
	boundaries []layers.ID        // of backups that need it
	others     map[repeat]bool    // single blocks of the volume where those in blocks are too
	broken     bool
	moved      bool // a relocation says that it is elsewhere too
}

func (n *neededFrame) key() sectionKey { return sectionKey{n.pack.id, n.frame.number} }

// add takes down which blocks of the frame a map names.
func (n *neededFrame) add(pieces []piece) {
	for _, p := range pieces {
		for i := range p.count {
			at, block := p.at+i, p.block+int64(i)
			switch n.blocks[at] {
			case -1, block:
				n.blocks[at] = block
				continue
			}
			if n.others == nil {
				n.others = make(map[repeat]bool)
			}
			n.others[repeat{run{block, 1}, int64(at)}] = true
		}
	}
}

// repeats are the blocks that maps name and that are not at these addresses.
func (n *neededFrame) repeats(addresses []int64) (out []repeat) {
	for r := range n.others {
		if addresses[r.at] != r.block {
			out = append(out, r)
		}
	}
	for at, block := range n.blocks[:len(addresses)] {
		if block >= 0 && addresses[at] != block {
			out = append(out, repeat{run{block, 1}, int64(at)})
		}
	}
	slices.SortFunc(out, func(a, b repeat) int { return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(a.at, b.at)) })
	return out
}
