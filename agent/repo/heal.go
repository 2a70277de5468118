package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/layers"
)

// A Source offers what may be what damaged frames of a volume held. Close
// gives it back.
type Source struct {
	// Layers may have the same bytes at the same places: the volume as it is,
	// its snapshots. What is taken from them is proved by the frame's id.
	Layers []layers.Layer

	// Exact reads what the volume held at a boundary, and reports whether it
	// can tell for all of p. It is asked where nothing else can prove what is
	// right. Nil: it never can.
	Exact func(boundary layers.ID, p []byte, off int64) (bool, error)

	Close func()
}

// healMax bounds the frames that are written anew by one Audit.
const healMax = 1 << 17

// A healer writes what damaged packs had into new ones. The new pack is durable
// before the relocation that names it.
type healer struct {
	a       *audit
	volume  layers.ID // whose packs are healed; relocations are by volume
	source  Source
	roots   []*root
	packs   map[packID]*checkedPack // what damaged packs say of themselves; nil: nothing
	session layers.ID
	pack    packBuilder
	rows    *relocating
	healed  []*neededFrame
	places  []damagePlace // that what is in rows was lost at
}

func (a *audit) newHealer(volume layers.ID) *healer {
	return &healer{a: a, volume: volume, packs: make(map[packID]*checkedPack), session: layers.NewID(), rows: newRelocating()}
}

// heal writes anew what can be found of the frames that were lost, and all
// that is needed of packs whose own account is damaged.
func (a *audit) heal(ctx context.Context) error {
	byVolume := make(map[layers.ID][]*neededFrame)
	for _, n := range a.needed {
		if n.broken || !n.moved && a.account[packID{inData, n.pack.id}] {
			byVolume[n.pack.key.volume] = append(byVolume[n.pack.key.volume], n)
		}
	}
	for volume, frames := range byVolume {
		slices.SortFunc(frames, func(x, y *neededFrame) int {
			return packID{inData, x.pack.id}.compareTo(packID{inData, y.pack.id}, x.frame.number, y.frame.number)
		})
		if err := a.newHealer(volume).run(ctx, frames); err != nil {
			return fmt.Errorf("repair packs of volume %s: %w", volume, err)
		}
	}
	return nil
}

func (p packID) compareTo(q packID, n, m uint32) int {
	if c := p.compare(q); c != 0 {
		return c
	}
	return int(int64(n) - int64(m))
}

// open gets ready what may have what was lost.
func (h *healer) open(ctx context.Context) (err error) {
	if h.a.options.Heal != nil {
		if h.source, err = h.a.options.Heal(ctx, h.volume); err != nil {
			return err
		}
	}
	if err := h.readRoots(ctx); err != nil {
		h.close()
		return err
	}
	return nil
}

func (h *healer) close() {
	if h.source.Close != nil {
		h.source.Close()
	}
}

func (h *healer) run(ctx context.Context, frames []*neededFrame) error {
	if err := h.open(ctx); err != nil {
		return err
	}
	defer h.close()
	var lost []*neededFrame
	for _, n := range frames {
		blocks, addresses, err := h.find(ctx, n)
		if err != nil {
			return err
		}
		if blocks == nil {
			lost = append(lost, n)
			continue
		}
		if err := h.write(ctx, n, blocks, addresses); err != nil {
			return err
		}
	}
	if err := h.findElsewhere(ctx, lost); err != nil {
		return err
	}
	return h.flush(ctx)
}

// readRoots reads the roots of the volume, the newest first.
func (h *healer) readRoots(ctx context.Context) error {
	for _, roots := range h.a.volumes {
		if roots[0].name.volume != h.volume {
			continue
		}
		for _, listed := range slices.Backward(roots) {
			root, err := h.a.readRoot(ctx, listed)
			if err != nil {
				return err
			}
			if root != nil {
				h.roots = append(h.roots, root)
			}
		}
	}
	return nil
}

// find returns the blocks of a frame and their addresses, or nil.
func (h *healer) find(ctx context.Context, n *neededFrame) (blocks []byte, addresses []int64, err error) {
	addresses = n.blocks[:n.frame.blocks]
	if !n.broken {
		blocks, err = h.a.repo.readFrame(ctx, n.pack, n.frame)
		return blocks, h.fill(addresses, blocks), err
	}
	account, err := h.accountOf(ctx, n.pack)
	if err != nil {
		return nil, nil, err
	}
	if account != nil && int(n.frame.number) < len(account.sections) {
		s := &account.sections[n.frame.number]
		if s.kind == sectionFrame && s.blocks == n.frame.blocks {
			if blocks, err = h.prove(ctx, n, s); blocks != nil || err != nil {
				return blocks, addressesOf(s), err
			}
		}
	}
	if blocks, err = h.exact(ctx, n); blocks == nil || err != nil {
		return nil, nil, err
	}
	return blocks, h.fill(addresses, blocks), nil
}

// addressesOf are the blocks of the volume that a frame has.
func addressesOf(s *section) (blocks []int64) {
	for _, r := range s.runs {
		for i := range r.count {
			blocks = append(blocks, r.block+i)
		}
	}
	return blocks
}

// fill puts a block that somebody needs in the place of each that nobody does,
// so that what a pack says of its blocks is true.
func (h *healer) fill(addresses []int64, blocks []byte) []int64 {
	out := slices.Clone(addresses)
	known := slices.IndexFunc(out, func(b int64) bool { return b >= 0 })
	for i := range out {
		if out[i] < 0 && known >= 0 {
			out[i] = out[known]
			copy(blocks[i*layers.BlockSize:(i+1)*layers.BlockSize], blocks[known*layers.BlockSize:])
		}
	}
	return out
}

// accountOf is what the trailer of a damaged pack says, or nil.
func (h *healer) accountOf(ctx context.Context, pack packRef) (*checkedPack, error) {
	id := packID{inData, pack.id}
	if p, ok := h.packs[id]; ok {
		return p, nil
	}
	p := new(checkedPack)
	err := p.read(ctx, h.a.repo, inData, pack, true)
	if err != nil {
		if p = nil; !isDamage(err) {
			return nil, err
		}
	}
	h.packs[id] = p
	return p, nil
}

// prove looks for the frame's blocks where they may be, and takes what has its
// id: other backups of the volume, the newest first, then the volume itself.
func (h *healer) prove(ctx context.Context, n *neededFrame, s *section) ([]byte, error) {
	key, err := h.a.repo.volumeKey(ctx, n.pack.key)
	if err != nil {
		_, err := h.a.note(err)
		return nil, err
	}
	ids, p := newKeyed(key.ids), make([]byte, int(s.blocks)*layers.BlockSize)
	tried := make(map[sectionKey]bool)
	for _, root := range h.roots {
		i := root.spans.find(s.runs[0].block)
		if i == len(root.spans.rows) || root.spans.rows[i].first > s.runs[0].block {
			continue
		}
		newest := &root.spans.rows[i].leaves[0]
		if at := (sectionKey{newest.pack.id, newest.number}); tried[at] {
			continue
		} else {
			tried[at] = true
		}
		l := h.a.repo.layerOf(root)
		found, err := readRuns(l, s.runs, p)
		l.Close() // Nothing was written.
		if err != nil && !isDamage(err) {
			return nil, err
		}
		if found && sectionID(ids, p) == s.id {
			return p, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
	}
	for _, l := range h.source.Layers {
		// What a layer cannot read is not there to be proved.
		if found, _ := readRuns(l, s.runs, p); found && sectionID(ids, p) == s.id {
			return p, nil
		}
	}
	return nil, nil
}

// readRuns reads runs of blocks into p. It reports false if the layer ends
// before.
func readRuns(l layers.Layer, runs []run, p []byte) (bool, error) {
	for _, r := range runs {
		n := r.count * layers.BlockSize
		off := r.block * layers.BlockSize
		if off >= l.Size() {
			return false, nil
		}
		part := p[:min(n, l.Size()-off)]
		if got, err := l.ReadAt(part, off); got < len(part) {
			return false, err
		}
		clear(p[len(part):n]) // the last block of a volume may be cut
		p = p[n:]
	}
	return true, nil
}

// exact puts a frame together from what the volume is known to have held when
// the backups were made, if that is known of every block that is needed.
func (h *healer) exact(ctx context.Context, n *neededFrame) ([]byte, error) {
	if h.source.Exact == nil {
		return nil, nil
	}
	blocks := make([]byte, int(n.frame.blocks)*layers.BlockSize)
	for i := range int(n.frame.blocks) {
		if n.blocks[i] < 0 {
			continue
		}
		p := blocks[i*layers.BlockSize : (i+1)*layers.BlockSize]
		known, err := h.exactBlock(n, n.blocks[i], p)
		for r := range n.others {
			if known || err != nil {
				break
			}
			if r.at == int64(i) {
				known, err = h.exactBlock(n, r.block, p)
			}
		}
		if err != nil {
			return nil, err
		}
		if !known {
			return nil, ctx.Err()
		}
	}
	return blocks, nil
}

// exactBlock reads what a block of the volume is known to have held in one of
// the backups that need it.
func (h *healer) exactBlock(n *neededFrame, block int64, p []byte) (known bool, err error) {
	for _, boundary := range n.boundaries {
		if known, err = h.source.Exact(boundary, p, block*layers.BlockSize); known || err != nil {
			return known, err
		}
	}
	return false, nil
}

// findElsewhere looks for frames by their ids in all packs that are needed, of
// any volume of the domain: the same 128 KiB may have been written twice.
func (h *healer) findElsewhere(ctx context.Context, lost []*neededFrame) error {
	wanted := make(map[frameID]*neededFrame)
	for _, n := range lost {
		account, err := h.accountOf(ctx, n.pack)
		if err != nil {
			return err
		}
		if account != nil && int(n.frame.number) < len(account.sections) && account.sections[n.frame.number].kind == sectionFrame {
			wanted[account.sections[n.frame.number].id] = n
		}
	}
	for i := range h.a.packs {
		if len(wanted) == 0 {
			return nil
		}
		p := &h.a.packs[i]
		if p.where != inData {
			continue
		}
		ref := packRef{p.id, h.a.keys[p.key]}
		account, err := h.accountOf(ctx, ref)
		if err != nil {
			return err
		}
		if !h.a.flagged[p.packID] {
			delete(h.packs, p.packID) // not to be asked again
		}
		if account == nil {
			continue
		}
		for j := range account.sections {
			s := &account.sections[j]
			n := wanted[s.id]
			if n == nil || s.kind != sectionFrame || s.blocks != n.frame.blocks || n.key() == (sectionKey{p.id, uint32(j)}) {
				continue
			}
			f := frameRef{number: uint32(j), off: account.offsets[j], stored: s.stored, blocks: s.blocks, zstd: s.zstd}
			blocks, err := h.a.repo.readFrame(ctx, ref, f)
			if errors.Is(err, ErrCorrupt) {
				continue
			}
			if err != nil {
				return err
			}
			own, err := h.accountOf(ctx, n.pack)
			if err != nil {
				return err
			}
			delete(wanted, s.id)
			if err := h.write(ctx, n, blocks, addressesOf(&own.sections[n.frame.number])); err != nil {
				return err
			}
		}
	}
	return nil
}

// write adds a frame to the pack at hand.
func (h *healer) write(ctx context.Context, n *neededFrame, blocks []byte, addresses []int64) error {
	key, err := h.a.repo.volumeKey(ctx, n.pack.key)
	if err != nil {
		return err
	}
	text, zstd := compress(nil, blocks), true
	if !shrinks(len(text), len(blocks)) {
		text, zstd = blocks, false
	}
	s := section{kind: sectionFrame, blocks: n.frame.blocks, zstd: zstd, id: sectionID(newKeyed(key.ids), blocks), runs: joined(addresses), repeats: n.repeats(addresses)}
	if err := h.put(ctx, key, n.name, text, s); err != nil {
		return err
	}
	h.healed = append(h.healed, n)
	h.places = append(h.places, damagePlace{packName(inData, n.pack.id), n.frame.off})
	return nil
}

// put adds a section to the pack at hand, and a row that leads to it from where
// it was written.
func (h *healer) put(ctx context.Context, key *volumeKey, name sectionKey, text []byte, s section) error {
	if h.pack.sealer != nil && (!h.pack.fits(len(text)+tagSize, h.a.repo.packTarget) || h.pack.key != key) {
		if err := h.flush(ctx); err != nil {
			return err
		}
	}
	if h.pack.sealer == nil {
		h.pack.begin(inData, newObjectID(h.session), h.session, key, nil)
	}
	to := sectionPlace{pack: packRef{h.pack.id, key.ref}, kind: s.kind, blocks: s.blocks, zstd: s.zstd}
	to.number, to.off, to.stored = h.pack.add(text, s)
	h.rows.add(name, &to)
	return nil
}

// joined makes runs of addresses in any order.
func joined(addresses []int64) (runs []run) {
	for _, b := range addresses {
		if n := len(runs); n > 0 && runs[n-1].block+runs[n-1].count == b {
			runs[n-1].count++
			continue
		}
		runs = append(runs, run{b, 1})
	}
	return runs
}

// flush makes the pack at hand durable, then the relocations to it.
func (h *healer) flush(ctx context.Context) error {
	if h.pack.sealer == nil {
		return nil
	}
	r, name, object := h.a.repo, packName(inData, h.pack.id), h.pack.finish()
	h.pack.sealer = nil
	if err := r.store.Put(ctx, name, object); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	if _, err := r.writeRelocations(ctx, h.volume, h.session, h.rows.build(), nil); err != nil {
		return err
	}
	for _, n := range h.healed {
		n.moved = true
	}
	for _, place := range h.places {
		h.a.repaired[place] = true
		h.a.repaired[damagePlace{place.object, wholePack}] = true
	}
	h.a.report.Healed += int64(len(h.healed))
	h.rows, h.healed, h.places = newRelocating(), nil, nil
	return nil
}

// wholePack stands for the offset of all findings in a pack.
const wholePack = -1

// readFrame reads one frame.
func (r *Repo) readFrame(ctx context.Context, pack packRef, f frameRef) (blocks []byte, err error) {
	g := groups([]wanted{{pack: pack, frame: f}})[0]
	other := r.fetch(ctx, &g, make([]byte, g.length), nil, func(_ *wanted, b []byte, e error) error {
		blocks, err = b, e
		return nil
	})
	return blocks, errors.Join(err, other)
}
