package repo

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"varve/agent/object"
	"varve/layers"
)

const (
	// Two frames of a pack are fetched with one request if what lies between
	// them costs less than another round trip would.
	gapMax   = 128 << 10
	groupMax = 4 << 20
)

// A wanted frame is one that somebody needs, with the blocks of it that are
// needed.
type wanted struct {
	pack    packRef
	frame   frameRef
	pieces  []piece
	written *sectionPlace // where it was written first, if it is not there any more

	need int    // bytes from its first one on that are expanded at once; 0: all
	text []byte // set by fetch if not all was: what the rest is expanded from
}

// name is what maps call the frame.
func (w *wanted) name() sectionKey {
	if w.written != nil {
		return sectionKey{w.written.pack.id, w.written.number}
	}
	return sectionKey{w.pack.id, w.frame.number}
}

func (w *wanted) place() sectionPlace {
	f := &w.frame
	return sectionPlace{pack: w.pack, number: f.number, off: f.off, stored: f.stored, kind: sectionFrame, blocks: f.blocks, zstd: f.zstd}
}

// placed turns frames as maps name them into frames as they lie, as far as is
// known. It changes them in place.
func (r *Repo) placed(frames []wanted) []wanted {
	var volume layers.ID
	var objects []*moveObject
	for i := range frames {
		w := &frames[i]
		if of := w.pack.key.volume; i == 0 || of != volume {
			volume, objects = of, r.moves.known(of)
		}
		if len(objects) == 0 || w.written != nil {
			continue
		}
		if to, ok := firstPlace(objects, w.name()); ok && to.kind == sectionFrame && to.blocks == w.frame.blocks {
			written := w.place()
			w.written, w.pack, w.frame = &written, to.pack, to.frameRef()
		}
	}
	return frames
}

// A group is a range of one pack that is fetched with one request.
type group struct {
	pack   packRef
	off    int64
	length int64
	frames []wanted // ascending
}

// groups sorts frames by pack and offset, and joins neighbours.
func groups(frames []wanted) []group {
	slices.SortFunc(frames, func(a, b wanted) int {
		return cmp.Or(slices.Compare(a.pack.id[:], b.pack.id[:]), cmp.Compare(a.frame.off, b.frame.off))
	})
	var out []group
	start := 0
	for i := range frames {
		f := &frames[i]
		if n := len(out); n > 0 {
			g := &out[n-1]
			end := g.off + g.length
			if g.pack == f.pack && f.frame.off >= end && f.frame.off-end <= gapMax && f.frame.end()-g.off <= groupMax {
				g.length = f.frame.end() - g.off
				g.frames = frames[start : i+1]
				continue
			}
		}
		start = i
		out = append(out, group{pack: f.pack, off: f.frame.off, length: int64(f.frame.stored), frames: frames[i : i+1]})
	}
	return out
}

// fetch reads a group into buf and calls each for its frames in turn, with
// their blocks, or with the error that each has. The blocks stand in plain, a
// newPlain, or in buf, until each returns; with a nil plain they are each's
// to keep. It stops at the first error that each returns.
func (r *Repo) fetch(ctx context.Context, g *group, buf, plain []byte, each func(w *wanted, blocks []byte, err error) error) error {
	name := packName(inData, g.pack.id)
	key, err := r.volumeKey(ctx, g.pack.key)
	if err == nil {
		err = r.readRange(ctx, name, buf[:g.length], g.off)
	}
	var s *sealer
	if err == nil {
		s = key.sealer(g.pack.id)
	}
	return object.InTurn(ctx, func(ctx context.Context) error {
		return r.openGroup(ctx, g, s, buf, plain, err, each)
	})
}

// openGroup opens the frames of a group that was read into buf; with an err, it
// could not be read.
func (r *Repo) openGroup(ctx context.Context, g *group, s *sealer, buf, plain []byte, err error, each func(w *wanted, blocks []byte, err error) error) error {
	name := packName(inData, g.pack.id)
	for i := range g.frames {
		w, blocks, err := &g.frames[i], []byte(nil), err
		if err == nil {
			at := w.frame.off - g.off
			blocks, err = w.open(s, buf[at:at+int64(w.frame.stored)], plain)
			if err != nil {
				err = damaged(name, w.frame.off, fmt.Errorf("frame %d: %w", w.frame.number, err))
			}
		}
		if err != nil {
			blocks, err = r.fetchMoved(ctx, w, plain, err)
		}
		if err := each(w, blocks, err); err != nil {
			return err
		}
	}
	return nil
}

// fetchMoved reads a frame at another place. Without one it returns err, why it
// cannot be read where it should be.
func (r *Repo) fetchMoved(ctx context.Context, w *wanted, plain []byte, err error) ([]byte, error) {
	tried := w.place()
	written := tried
	if w.written != nil {
		written = *w.written
	}
	to, text, err := r.openMoved(ctx, w.name(), written, tried, err)
	if err != nil {
		return nil, err
	}
	f := to.frameRef()
	blocks, err := f.expand(text, plain)
	if err != nil {
		return nil, damaged(packName(to.where, to.pack.id), to.off, fmt.Errorf("frame %d: %w", to.number, err))
	}
	return blocks, nil
}

// open is openFrame, of as much of the frame as is needed at once. Of a frame
// with a need, the blocks and the text may be in stored, for the caller to keep.
func (w *wanted) open(s *sealer, stored, plain []byte) ([]byte, error) {
	if w.need == 0 {
		return openFrame(s, &w.frame, stored, plain)
	}
	text, err := s.open(stored, sectionFrame, w.frame.number, nil)
	if err != nil {
		return nil, err
	}
	if !w.frame.zstd {
		return w.frame.expand(text, stored)
	}
	if front, ok := expandFront(text, w.need, int(w.frame.blocks)*layers.BlockSize); ok {
		w.text = text
		return front, nil
	}
	return w.frame.expand(text, plain)
}

// openFrame authenticates and expands a frame. The result is in stored or in
// plain, or in bytes of its own if plain is nil.
func openFrame(s *sealer, f *frameRef, stored, plain []byte) ([]byte, error) {
	text, err := s.open(stored, sectionFrame, f.number, nil)
	if err != nil {
		return nil, err
	}
	return f.expand(text, plain)
}

// expand returns the blocks of a frame that was opened, in text, in plain, a
// newPlain, or in bytes of their own if plain is nil.
func (f *frameRef) expand(text, plain []byte) ([]byte, error) {
	n := int(f.blocks) * layers.BlockSize
	if !f.zstd {
		if len(text) != n {
			return nil, fmt.Errorf("%d bytes, expected %d", len(text), n)
		}
		if plain == nil {
			text = slices.Clone(text)
		}
		return text, nil
	}
	if plain == nil {
		plain = make([]byte, n, n+expandSlack)
	}
	if err := expandInto(plain[:n], text); err != nil {
		return nil, err
	}
	return plain[:n], nil
}

// readLeaves reads the leaves of a row at the same time.
func (r *Repo) readLeaves(ctx context.Context, volume layers.ID, row row, parts []*leaf) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range row.leaves {
		g.Go(func() (err error) {
			parts[i], err = r.readLeaf(ctx, volume, &row, i)
			return err
		})
	}
	return g.Wait()
}

func (r *Repo) readLeaf(ctx context.Context, volume layers.ID, row *row, i int) (*leaf, error) {
	return r.readOneLeaf(ctx, volume, &row.leaves[i], row.first, row.blocks, i == len(row.leaves)-1)
}

// readOneLeaf reads the leaf of a span, which is a base or not.
func (r *Repo) readOneLeaf(ctx context.Context, volume layers.ID, ref *leafRef, first, blocks int64, base bool) (*leaf, error) {
	text, err := r.readSection(ctx, ref, sectionLeaf)
	if err != nil {
		return nil, err
	}
	bad := func(err error) (*leaf, error) { return nil, damaged(ref.pack.name(), ref.off, err) }
	if text, err = expand(text, maxLeafText); err != nil {
		return bad(err)
	}
	l, err := parseLeaf(text, volume)
	if err != nil {
		return bad(err)
	}
	if l.first != first || l.blocks != blocks || l.base != base {
		return bad(fmt.Errorf("leaf of %d blocks from %d on, expected %d from %d on", l.blocks, l.first, blocks, first))
	}
	return l, nil
}

// readSection reads and opens a section that a root names.
func (r *Repo) readSection(ctx context.Context, ref *leafRef, kind sectionKind) ([]byte, error) {
	written := ref.place(kind)
	at := r.placeOf(written)
	text, err := r.openPlace(ctx, &at)
	if err != nil {
		_, text, err = r.openMoved(ctx, ref.name(), written, at, err)
	}
	return text, err
}

// place is where a section was written that a root names.
func (l *leafRef) place(kind sectionKind) sectionPlace {
	return sectionPlace{
		pack: packRef{l.pack.id, l.pack.key}, where: l.pack.where,
		number: l.number, off: l.off, stored: l.stored, kind: kind, zstd: true,
	}
}

// name is what roots call the section.
func (l *leafRef) name() sectionKey { return sectionKey{l.pack.id, l.number} }

// placeOf is where a section is, as far as is known.
func (r *Repo) placeOf(written sectionPlace) sectionPlace {
	name := sectionKey{written.pack.id, written.number}
	if to, ok := firstPlace(r.moves.known(written.pack.key.volume), name); ok && to.kind == written.kind && to.blocks == written.blocks {
		return to
	}
	return written
}

// wantedOf lists the frames of the pieces that overlap [first, end).
func (l *leaf) wantedOf(first, end int64) []wanted {
	i, _ := slices.BinarySearchFunc(l.pieces, first, func(p piece, block int64) int {
		if p.end() <= block {
			return -1
		}
		return 1
	})
	var out []wanted
	index := make(map[int32]int)
	for ; i < len(l.pieces) && l.pieces[i].block < end; i++ {
		p := &l.pieces[i]
		if p.isZero() {
			continue
		}
		at, ok := index[p.frame]
		if !ok {
			at = len(out)
			index[p.frame] = at
			f := l.frames[p.frame]
			out = append(out, wanted{pack: l.packs[f.pack], frame: f})
		}
		out[at].pieces = append(out[at].pieces, *p)
	}
	return out
}
