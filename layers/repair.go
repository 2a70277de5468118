package layers

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
)

// Repair writes good bytes over the damaged blocks of a sealed layer in
// [off, off+n): those that cannot be read or do not match their checksum. It
// takes them from source, which has the addresses of the volume, and only those
// that match the checksum; so source may be anything that might have them. It
// returns how many blocks it repaired, and how many damaged ones source does not
// have.
//
// A crash leaves each block damaged or repaired. A layer that clones share is
// repaired for all. One that is not there is fs.ErrNotExist; one whose checksums
// are damaged themselves is ErrCorrupt. An error of source ends the repair.
func (v *Volume) Repair(ctx context.Context, layer ID, off, n int64, source Layer) (repaired, damaged int64, err error) {
	r := &repair{v: v, ctx: ctx, source: source}
	if err := r.run(layer, off, n); err != nil {
		return r.repaired, r.damaged, fmt.Errorf("repair layer %s of volume %s: %w", layer, v.id, err)
	}
	return r.repaired, r.damaged, nil
}

// repair is a Repair under way.
type repair struct {
	v                 *Volume
	ctx               context.Context
	source            Layer
	layer             *layerFile
	repaired, damaged int64 // blocks
	bad, good         [BlockSize]byte
}

func (r *repair) run(layer ID, off, n int64) error {
	if err := r.v.writable(); err != nil {
		return err
	}
	if r.layer = r.v.holdSealed(layer); r.layer == nil {
		return fmt.Errorf("no sealed layer: %w", fs.ErrNotExist)
	}
	defer r.layer.release() // the volume's own reference reports a close that goes wrong
	off, end, ok := clipRange(off, n, r.v.size.Load())
	if !ok {
		return nil
	}
	for _, g := range r.layer.present() {
		first := int64(g) * pageBlocks
		from, to := max(off/BlockSize, first), min(blocksOf(end), first+pageBlocks)
		if err := r.group(g, int(from-first), int(to-first)); err != nil {
			return err
		}
	}
	if r.repaired == 0 {
		return nil
	}
	return r.v.sync(r.layer.data)
}

// holdSealed returns a sealed layer with a reference; nil if there is none.
func (v *Volume) holdSealed(id ID) *layerFile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	at := slices.IndexFunc(v.files, func(l *layerFile) bool { return l.id == id })
	if at < 0 || at == v.chain.Head {
		return nil
	}
	v.files[at].refs.Add(1)
	return v.files[at]
}

// group repairs the blocks [i, end) of a group.
func (r *repair) group(g uint32, i, end int) error {
	page, s, ok, err := r.layer.stored(g)
	if err != nil || !ok || page.Sums == 0 {
		return err
	}
	for ; i < end; i++ {
		if page.Kinds.at(i) != Data {
			continue
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
		off := (int64(g)*pageBlocks + int64(i)) * BlockSize
		if err := readFull(r.layer.data, r.bad[:], off); err == nil && crc(r.bad[:]) == s[i] {
			continue
		}
		if _, err := r.source.ReadAt(r.good[:], off); err != nil && !isEOF(err) {
			return fmt.Errorf("block at offset %d of the source: %w", off, err)
		}
		if err := r.block(g, i, off); err != nil {
			return err
		}
	}
	return nil
}

// block writes the good bytes over a block that is still damaged, if they are
// what its checksum is of.
func (r *repair) block(g uint32, i int, off int64) error {
	r.v.tidying.Lock()
	defer r.v.tidying.Unlock()
	page, s, ok, err := r.layer.stored(g)
	if err != nil || !ok || page.Sums == 0 || page.Kinds.at(i) != Data {
		return err
	}
	if err := readFull(r.layer.data, r.bad[:], off); err == nil && crc(r.bad[:]) == s[i] {
		return nil
	}
	if crc(r.good[:]) != s[i] {
		r.damaged++
		return nil
	}
	if err := r.layer.data.writeAt(r.good[:], off); err != nil {
		return err
	}
	r.repaired++
	return nil
}
