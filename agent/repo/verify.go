package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A Level says how much Verify reads of a backup, and Audit of a repository.
// Each reads what the one before reads, and more.
type Level int

const (
	// Presence reads the root and the map, and the first and last bytes of
	// each pack.
	Presence Level = iota
	// Map also reads the trailers of the packs and the inventory, and compares
	// them with the map.
	Map
	// Sample is Map to Verify. Audit also reads frames that it draws.
	Sample
	// Deep also reads every frame that the backup needs, decrypts and expands
	// it, and compares its id.
	Deep
)

var levelNames = [...]string{"presence", "map", "sample", "deep"}

// String is the level's name.
func (l Level) String() string { return levelNames[l] }

// ParseLevel reads what String wrote.
func ParseLevel(name string) (Level, error) {
	i := slices.Index(levelNames[:], name)
	if i < 0 {
		return 0, fmt.Errorf("there is no level %q: there are %s", name, strings.Join(levelNames[:], ", "))
	}
	return Level(i), nil
}

// VerifyOptions choose what Verify does.
type VerifyOptions struct {
	Level Level

	// Progress is told the bytes of the volume whose place was checked, zeros
	// included, and its size, if it is not nil; never by two goroutines at
	// once.
	Progress func(done, total int64)
}

// A Report says what Verify read and what it found.
type Report struct {
	Packs  int64   // objects with data that the backup needs
	Frames int64   // frames that were read, with Deep
	Bytes  int64   // stored bytes of those frames
	Damage []error // what is damaged, at most maxDamage
}

const maxDamage = 100

// Verify checks a backup. If anything is damaged the error wraps ErrCorrupt,
// and the report names each place. Other errors mean that the store did not
// answer.
func (r *Repo) Verify(ctx context.Context, id layers.ID, o VerifyOptions) (Report, error) {
	v := &verify{repo: r, options: o, packs: make(map[objectID]*checkedPack)}
	err := v.run(ctx, id)
	if n := len(v.report.Damage); err == nil && n > 0 {
		err = fmt.Errorf("%d places, the first: %w", n, v.report.Damage[0])
		if n == maxDamage {
			err = fmt.Errorf("at least %w", err)
		}
	}
	if err != nil {
		return v.report, fmt.Errorf("verify backup %s: %w", id, err)
	}
	return v.report, nil
}

type verify struct {
	repo    *Repo
	options VerifyOptions
	root    *root

	mu     sync.Mutex // all below
	report Report
	packs  map[objectID]*checkedPack
	held   int // sections that packs keeps
	done   int64
}

// A checkedPack is what the header and the trailer of a pack say.
type checkedPack struct {
	once     sync.Once
	err      error
	total    int64 // length of the object, bytes
	frames   int64 // offset where they end
	sections []section
	offsets  []int64
}

func (v *verify) run(ctx context.Context, id layers.ID) (err error) {
	if v.root, err = v.repo.openRoot(ctx, id); err != nil {
		return v.note(err)
	}
	v.advance(0)
	if v.options.Level >= Map && v.root.inventory != nil {
		if err := v.note(v.inventory(ctx)); err != nil {
			return err
		}
	}
	if err := v.leafPacks(ctx); err != nil {
		return err
	}
	next := int64(0)
	rows := v.root.spans.rows
	for len(rows) > 0 {
		part := rows[:min(len(rows), restoreRows)]
		rows = rows[len(part):]
		leaves, err := v.leaves(ctx, part)
		if err != nil {
			return err
		}
		if err := v.checkFrames(ctx, allWanted(leaves)); err != nil {
			return err
		}
		end := part[len(part)-1].first + part[len(part)-1].blocks
		v.advance((end - next) * layers.BlockSize)
		next = end
	}
	v.advance(max(0, v.root.backup.Size-next*layers.BlockSize))
	return nil
}

// leafPacks checks the objects that hold leaves.
func (v *verify) leafPacks(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreFetches)
	for ref := range v.leafPackRefs() {
		g.Go(func() error {
			var p checkedPack
			err := p.read(ctx, v.repo, inLeaves, ref, v.options.Level >= Map)
			if moved, other := v.movedSince(ctx, ref, err); moved || other != nil {
				return other // the leaves are read from where they are now
			}
			return v.note(err)
		})
	}
	return g.Wait()
}

// movedSince reports whether a pack of leaves that could not be read, for err,
// is one that nothing of the backup is in any more: pruning may have moved its
// content, and removed it, since somebody looked for relocations here.
func (v *verify) movedSince(ctx context.Context, ref packRef, err error) (bool, error) {
	if !errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	if err := v.repo.refreshMoves(ctx, v.root.name.volume); err != nil {
		return false, err
	}
	return !v.leafPackRefs()[ref], nil
}

// leafPackRefs are the packs below m/ that hold something of the backup. Those
// with frames are brought up by them.
func (v *verify) leafPackRefs() map[packRef]bool {
	packs := make(map[packRef]bool)
	add := func(ref *leafRef, kind sectionKind) {
		if at := v.repo.placeOf(ref.place(kind)); at.where == inLeaves {
			packs[at.pack] = true
		}
	}
	for i := range v.root.spans.rows {
		for j := range v.root.spans.rows[i].leaves {
			add(&v.root.spans.rows[i].leaves[j], sectionLeaf)
		}
	}
	if v.root.inventory != nil {
		add(v.root.inventory, sectionInventory)
	}
	return packs
}

// note keeps damage for the report and lets other errors through.
func (v *verify) note(err error) error {
	if !isDamage(err) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.report.Damage) < maxDamage {
		v.report.Damage = append(v.report.Damage, err)
	}
	return nil
}

// advance reports n more bytes of the volume; the last span may go past it.
func (v *verify) advance(n int64) {
	v.done = min(v.done+n, v.root.backup.Size)
	if v.options.Progress != nil {
		v.options.Progress(v.done, v.root.backup.Size)
	}
}

// leaves reads the rows, one by one where some are damaged.
func (v *verify) leaves(ctx context.Context, rows []row) ([]*leaf, error) {
	leaves := make([]*leaf, len(rows))
	g, ctx := errgroup.WithContext(ctx)
	for i, row := range rows {
		g.Go(func() (err error) {
			leaves[i], err = v.repo.readRow(ctx, v.root.name.volume, row)
			return v.note(err)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(leaves, func(l *leaf) bool { return l == nil }), nil
}

// inventory checks the packs that the backup added, needed or not.
func (v *verify) inventory(ctx context.Context) error {
	packs, err := v.repo.readInventory(ctx, v.root)
	if err != nil {
		return err
	}
	ref := v.root.inventory
	for _, p := range packs {
		if p.where == inData && !v.listed(p.id, p.size) {
			return damaged(ref.pack.name(), ref.off, fmt.Errorf("pack %s of %d bytes is in the inventory of another backup", p.id, p.size))
		}
	}
	return nil
}

// listed reports whether a pack can be one of this backup: its session is.
func (v *verify) listed(id objectID, size int64) bool {
	return string(id[:8]) == string(v.root.backup.ID[8:]) && size > headerSize
}

// checkFrames checks the packs of the frames, and the frames as deep as asked.
func (v *verify) checkFrames(ctx context.Context, frames []wanted) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreFetches)
	var buffers sync.Pool
	for pack := range byPack(v.repo.placed(frames)) {
		g.Go(func() error {
			checked, err := v.pack(ctx, pack[0].pack)
			if checked == nil || errors.Is(err, ErrCorrupt) {
				moved, other := v.repo.allElsewhere(ctx, pack)
				if other != nil {
					return other
				}
				if !moved {
					return v.note(err)
				}
				checked, err = new(checkedPack), nil // the frames are elsewhere too
			}
			if err != nil {
				return v.note(err)
			}
			for i := range pack {
				if checked.total == 0 {
					break
				}
				if err := v.note(checked.compare(&pack[i], v.options.Level)); err != nil {
					return err
				}
			}
			if v.options.Level < Deep {
				return nil
			}
			buf, ok := buffers.Get().([]byte)
			if !ok {
				buf = make([]byte, groupMax+frameBytes+expandSlack)
			}
			defer buffers.Put(buf)
			return v.deep(ctx, pack, checked, buf)
		})
	}
	return g.Wait()
}

// byPack yields the frames pack by pack.
func byPack(frames []wanted) func(func([]wanted) bool) {
	slices.SortFunc(frames, func(a, b wanted) int {
		return cmp.Or(slices.Compare(a.pack.id[:], b.pack.id[:]), cmp.Compare(a.frame.off, b.frame.off))
	})
	return func(yield func([]wanted) bool) {
		for len(frames) > 0 {
			n := 1
			for n < len(frames) && frames[n].pack.id == frames[0].pack.id {
				n++
			}
			if !yield(frames[:n]) {
				return
			}
			frames = frames[n:]
		}
	}
}

// deep reads the frames of one pack.
func (v *verify) deep(ctx context.Context, frames []wanted, checked *checkedPack, buf []byte) error {
	key, err := v.repo.volumeKey(ctx, frames[0].pack.key)
	if err != nil {
		return v.note(err)
	}
	ids := newKeyed(key.ids)
	var last error
	for _, group := range groups(frames) {
		err := v.repo.fetch(ctx, &group, buf[:groupMax], buf[groupMax:], func(w *wanted, blocks []byte, err error) error {
			if err == nil && int(w.frame.number) < len(checked.sections) && sectionID(ids, blocks) != checked.sections[w.frame.number].id {
				err = damaged(packName(inData, w.pack.id), w.frame.off, fmt.Errorf("frame %d: its id is another one", w.frame.number))
			}
			if err != nil && err == last {
				return nil // one damage hit several frames
			}
			last = err
			v.mu.Lock()
			v.report.Frames++
			v.report.Bytes += int64(w.frame.stored)
			v.mu.Unlock()
			return v.note(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// heldMax bounds the sections that are kept for packs that come up again.
const heldMax = 1 << 18

// pack reads what a pack says about itself, once. A damaged one is an error the
// first time, and nil after that.
func (v *verify) pack(ctx context.Context, ref packRef) (*checkedPack, error) {
	v.mu.Lock()
	p, ok := v.packs[ref.id]
	if !ok {
		if v.held > heldMax {
			clear(v.packs)
			v.held = 0
		}
		p = new(checkedPack)
		v.packs[ref.id] = p
		v.report.Packs++
	}
	v.mu.Unlock()
	known := true
	p.once.Do(func() {
		known = false
		p.err = p.read(ctx, v.repo, inData, ref, v.options.Level >= Map)
		v.mu.Lock()
		v.held += len(p.sections)
		v.mu.Unlock()
	})
	if known && p.err != nil {
		return nil, nil
	}
	return p, p.err
}

// read checks header and footer, and the trailer if asked.
func (p *checkedPack) read(ctx context.Context, r *Repo, where place, ref packRef, trailer bool) error {
	name := packName(where, ref.id)
	front := make([]byte, headerSize)
	if err := r.readRange(ctx, name, front, 0); err != nil {
		return err
	}
	return p.readBehind(ctx, r, where, ref, front, trailer)
}

// readBehind is read for who has the front of the pack.
func (p *checkedPack) readBehind(ctx context.Context, r *Repo, where place, ref packRef, front []byte, trailer bool) error {
	name := packName(where, ref.id)
	h, key, err := r.openPack(ctx, where, ref, front)
	if err != nil {
		return err
	}
	from := h.total - footerSize
	if trailer {
		from -= int64(h.inner)
	}
	back := make([]byte, h.total-from)
	if err := r.readRange(ctx, name, back, from); err != nil {
		return err
	}
	return p.readEnd(name, &h, key, front, back, trailer)
}

// openPack checks the header of a pack, and returns the key that it names.
func (r *Repo) openPack(ctx context.Context, where place, ref packRef, front []byte) (h header, key *volumeKey, err error) {
	name, kind := packName(where, ref.id), kindData
	if where == inLeaves {
		kind = kindLeaves
	}
	if h, err = parseHeader(front); err != nil {
		return h, nil, damaged(name, 0, err)
	}
	if h.kind != kind || h.id != ref.id || h.key != ref.key {
		return h, nil, damaged(name, 0, fmt.Errorf("it is pack %s, expected %s", h.id, ref.id))
	}
	if h.inner > maxTrailer || h.total < headerSize+int64(h.inner)+footerSize {
		return h, nil, damaged(name, 96, fmt.Errorf("lengths %d and %d do not fit each other", h.inner, h.total))
	}
	key, err = r.keyOf(ctx, &h, name)
	return h, key, err
}

// readEnd checks the footer, the end of back, and the trailer before it if
// asked.
func (p *checkedPack) readEnd(name string, h *header, key *volumeKey, front, back []byte, trailer bool) error {
	p.total, p.frames = h.total, h.total-footerSize-int64(h.inner)
	footer := len(back) - footerSize
	if err := checkFooter(back[footer:], h); err != nil {
		return damaged(name, h.total-footerSize, err)
	}
	if !trailer {
		return nil
	}
	if err := p.readTrailer(key.sealer(h.id), front, back[footer-int(h.inner):footer]); err != nil {
		return damaged(name, p.frames, err)
	}
	return nil
}

// parse checks a whole pack but for its frames, and returns its key.
func (p *checkedPack) parse(ctx context.Context, r *Repo, where place, ref packRef, b []byte) (*volumeKey, error) {
	name := packName(where, ref.id)
	h, key, err := r.openPack(ctx, where, ref, b)
	if err != nil {
		return nil, err
	}
	if h.total != int64(len(b)) {
		return nil, damaged(name, 100, fmt.Errorf("it says that it has %d bytes, and has %d", h.total, len(b)))
	}
	return key, p.readEnd(name, &h, key, b, b, true)
}

func (p *checkedPack) readTrailer(s *sealer, front, stored []byte) error {
	text, err := s.open(stored, sectionTrailer, trailerNumber, front[:headerBound])
	if err != nil {
		return err
	}
	if text, err = expand(text, maxTrailer); err != nil {
		return err
	}
	_, p.sections, err = parseTrailer(text)
	if err != nil {
		return err
	}
	at := int64(headerSize)
	for i := range p.sections {
		p.offsets = append(p.offsets, at)
		at += int64(p.sections[i].stored)
	}
	if at != p.frames {
		return fmt.Errorf("its sections end at %d, expected %d", at, p.frames)
	}
	return nil
}

// compare checks what the map says of a frame against its pack.
func (p *checkedPack) compare(w *wanted, level Level) error {
	f, name := &w.frame, packName(inData, w.pack.id)
	if f.end() > p.frames {
		return damaged(name, f.off, fmt.Errorf("frame %d ends at %d, the frames at %d", f.number, f.end(), p.frames))
	}
	if level < Map {
		return nil
	}
	if int(f.number) >= len(p.sections) {
		return damaged(name, f.off, fmt.Errorf("frame %d of %d", f.number, len(p.sections)))
	}
	s := &p.sections[f.number]
	if s.kind != sectionFrame || s.stored != f.stored || s.blocks != f.blocks || s.zstd != f.zstd || p.offsets[f.number] != f.off {
		return damaged(name, f.off, fmt.Errorf("frame %d is not as its pack lists it", f.number))
	}
	for i := range w.pieces {
		if p := &w.pieces[i]; !s.holds(p.block, int64(p.at)) {
			return damaged(name, f.off, fmt.Errorf("frame %d has block %d where the map says %d", f.number, s.blockAt(p.at), p.block))
		}
	}
	return nil
}

// blockAt is the block of the volume at a place in the frame.
func (s *section) blockAt(at int32) int64 {
	for _, r := range s.runs {
		if int64(at) < r.count {
			return r.block + int64(at)
		}
		at -= int32(r.count)
	}
	return -1
}
