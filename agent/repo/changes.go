package repo

import (
	"fmt"
	"iter"

	"varve/layers"
)

// A change is a run of blocks that may differ from the parent: zero if that is
// known of all of them, otherwise the source is to be read.
type change struct {
	run
	zero bool
}

// changes yields the blocks that the backup has to look at, ascending. A block
// of which only a part changed is read whole.
func (j *Job) changes() iter.Seq2[change, error] {
	if j.Changes != nil {
		return blockRuns(j.Changes.Extents(0, j.Source.Size()), j.Source.Size())
	}
	return blockRuns(fillGaps(j.Source.Extents(0, j.Source.Size()), j.Source.Size()), j.Source.Size())
}

// fillGaps puts zeros where a whole content says nothing.
func fillGaps(extents iter.Seq2[layers.Extent, error], size int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		end := int64(0)
		for e, err := range extents {
			if err == nil && e.Off > end && !yield(layers.Extent{Off: end, Len: e.Off - end, Kind: layers.Zero}, nil) {
				return
			}
			if !yield(e, err) || err != nil {
				return
			}
			end = e.End()
		}
		if end < size {
			yield(layers.Extent{Off: end, Len: size - end, Kind: layers.Zero}, nil)
		}
	}
}

// blockRuns widens data to whole blocks, and narrows zeros to them.
func blockRuns(extents iter.Seq2[layers.Extent, error], size int64) iter.Seq2[change, error] {
	return func(yield func(change, error) bool) {
		next := int64(0) // blocks before it are dealt with
		put := func(first, end int64, zero bool) bool {
			first = max(first, next)
			if end <= first {
				return true
			}
			next = end
			return yield(change{run{first, end - first}, zero}, nil)
		}
		for e, err := range extents {
			if err != nil {
				yield(change{}, fmt.Errorf("look for changes: %w", err))
				return
			}
			end := e.End()
			if end >= size {
				end = blocksOf(size) * layers.BlockSize
			}
			outFirst, outEnd := e.Off/layers.BlockSize, blocksOf(end)
			inFirst, inEnd := blocksOf(e.Off), end/layers.BlockSize
			ok := true
			switch {
			case e.Kind == layers.Data, e.Kind == layers.Zero && inFirst >= inEnd:
				ok = put(outFirst, outEnd, false)
			case e.Kind == layers.Zero:
				ok = put(outFirst, inFirst, false) && put(inFirst, inEnd, true) && put(inEnd, outEnd, false)
			}
			if !ok {
				return
			}
		}
	}
}

// blocksOf is the number of blocks that n bytes take.
func blocksOf(n int64) int64 { return (n + layers.BlockSize - 1) / layers.BlockSize }

// sparseBlocks is the most that a frame holds of blocks that are not
// neighbours; a region with more changed blocks makes a frame of its own.
const sparseBlocks = 8

// A cutter cuts changes into tasks of one frame each. The tasks come in the
// order of their spans, and within a span the frames in the order of their
// blocks.
type cutter struct {
	emit   func(span run, runs, zeros []run) error
	spanOf func(block int64) run

	span   run
	region []run // changed blocks of the region at hand
	sparse []run // gathered from regions with few
	inside int64 // blocks in sparse
	zeros  []run
}

// add takes the next change.
func (c *cutter) add(ch change) error {
	for ch.count > 0 {
		if ch.block >= c.span.block+c.span.count {
			if err := c.flush(); err != nil {
				return err
			}
			c.span = c.spanOf(ch.block)
		}
		part := ch.run
		part.count = min(part.count, c.span.block+c.span.count-part.block)
		if ch.zero {
			c.zeros = append(c.zeros, part)
		} else if err := c.addData(part); err != nil {
			return err
		}
		ch.block, ch.count = ch.block+part.count, ch.count-part.count
	}
	return nil
}

func (c *cutter) addData(r run) error {
	for r.count > 0 {
		if n := len(c.region); n > 0 && c.region[n-1].block/frameBlocks != r.block/frameBlocks {
			if err := c.closeRegion(); err != nil {
				return err
			}
		}
		part := run{r.block, min(r.count, frameBlocks-r.block%frameBlocks)}
		c.region = append(c.region, part)
		r.block, r.count = r.block+part.count, r.count-part.count
	}
	return nil
}

// closeRegion makes a frame of the region, or adds it to the sparse one.
func (c *cutter) closeRegion() error {
	region, total := c.region, int64(0)
	c.region = c.region[:0]
	for _, r := range region {
		total += r.count
	}
	if total > sparseBlocks {
		if err := c.closeSparse(); err != nil {
			return err
		}
		return c.send(region)
	}
	for _, r := range region {
		for r.count > 0 {
			part := run{r.block, min(r.count, sparseBlocks-c.inside)}
			c.sparse = append(c.sparse, part)
			c.inside += part.count
			r.block, r.count = r.block+part.count, r.count-part.count
			if c.inside == sparseBlocks {
				if err := c.closeSparse(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *cutter) closeSparse() error {
	if c.inside == 0 {
		return nil
	}
	runs := c.sparse
	c.sparse, c.inside = c.sparse[:0], 0
	return c.send(runs)
}

// zerosMax bounds the zeros that one task carries.
const zerosMax = 4096

// send passes a task on; the callee copies the runs.
func (c *cutter) send(runs []run) error {
	zeros := c.zeros[:min(len(c.zeros), zerosMax)]
	if err := c.emit(c.span, runs, zeros); err != nil {
		return err
	}
	c.zeros = append(c.zeros[:0], c.zeros[len(zeros):]...)
	return nil
}

// flush sends all that is left of the span.
func (c *cutter) flush() error {
	if err := c.closeRegion(); err != nil {
		return err
	}
	if err := c.closeSparse(); err != nil {
		return err
	}
	for len(c.zeros) > 0 {
		if err := c.send(nil); err != nil {
			return err
		}
	}
	return nil
}
