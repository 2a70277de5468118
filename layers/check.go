package layers

import (
	"context"
	"errors"
	"fmt"
)

// Check reads everything that the volume keeps: the header and the chain, every
// page of every map, the checksums of sealed layers and the blocks that they
// are of. It goes on after damage and returns all that it found, joined, up to
// maxFindings; each is a *CorruptError that names the layer's file, the offset,
// what was expected and what was found. Reads and writes go on meanwhile.
//
// The head has no checksums yet, nor has a layer that was sealed a moment ago.
func (v *Volume) Check(ctx context.Context) error {
	if v.closed.Load() {
		return v.errClosed()
	}
	var found findings
	if err := found.add(v.checkFiles()); err != nil {
		return err
	}
	layers := v.holdLayers()
	defer func() {
		for _, l := range layers {
			l.release() // the volume's own reference reports a close that goes wrong
		}
	}()
	for _, l := range layers {
		for g := range groupsOf(v.size.Load()) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if v.closed.Load() {
				return v.errClosed()
			}
			v.tidying.Lock()
			err := v.checkGroup(l, g, &found)
			v.tidying.Unlock()
			if err != nil {
				return fmt.Errorf("check layer %s: %w", l.id, err)
			}
			if len(found.list) == maxFindings {
				return found.err()
			}
		}
	}
	return found.err()
}

const maxFindings = 1000

// findings are the damage that a check found.
type findings struct{ list []error }

// add keeps an error that is damage, and returns any other.
func (f *findings) add(err error) error {
	if errors.Is(err, ErrCorrupt) && len(f.list) < maxFindings {
		f.list = append(f.list, err)
		return nil
	}
	return err
}

func (f *findings) err() error { return errors.Join(f.list...) }

// holdLayers returns the layers of the stack with a reference to each.
func (v *Volume) holdLayers() []*layerFile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	layers := append([]*layerFile(nil), v.files...)
	for _, l := range layers {
		l.refs.Add(1)
	}
	return layers
}

// checkFiles decodes the header and the chain as they are on disk.
func (v *Volume) checkFiles() error {
	v.admin.Lock()
	defer v.admin.Unlock()
	b, err := readWhole(v.d, headerName, headerLength+1)
	if err != nil {
		return err
	}
	if _, err := decodeHeader(v.d.path(headerName), b); err != nil {
		return err
	}
	if b, err = readWhole(v.d, chainName, maxChainFile+1); err != nil {
		return err
	}
	c, err := decodeChain(v.d.path(chainName), b)
	if err != nil {
		return err
	}
	if c.Generation != v.chain.Generation {
		return &CorruptError{v.d.path(chainName), 32, fmt.Sprintf("generation %d", v.chain.Generation), fmt.Sprint(c.Generation)}
	}
	return nil
}

// checkGroup checks the page, the checksums and the blocks of a group.
func (v *Volume) checkGroup(l *layerFile, g uint32, found *findings) error {
	l.mu.RLock()
	gr := l.groups[g]
	stored := gr != nil && gr.slot >= 0
	var page mapPage
	var err error
	if stored {
		page.Sums, page.SumsCRC = gr.sums, gr.sumsCRC
		onDisk := *gr
		onDisk.kinds = nil // what is in memory proves nothing
		err = l.loadLocked(g, &onDisk, &page.Kinds)
	}
	l.mu.RUnlock()
	if err != nil || !stored || page.Sums == 0 {
		return found.add(err)
	}
	var s sums
	if err := l.readSums(g, page.Sums, page.SumsCRC, &s); err != nil {
		return found.add(err)
	}
	return l.eachData(g, &page.Kinds, func(i int, b []byte) error {
		for ; len(b) > 0 && len(found.list) < maxFindings; i, b = i+1, b[BlockSize:] {
			if err := found.add(s.check(l, g, i, b[:BlockSize])); err != nil {
				return err
			}
		}
		return nil
	})
}
