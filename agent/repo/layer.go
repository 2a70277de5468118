package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"varve/layers"
)

// A Layer is the content of one backup, whole, read from the store as needed.
// It is a layers.Layer, safe for concurrent use. The first byte takes three
// requests, one after the other, for the root, a leaf and a frame; later ones
// take at most two, or none if the cache has what they need.
type Layer struct {
	repo *Repo
	root *root
	ctx  context.Context
	end  context.CancelCauseFunc

	mu     sync.Mutex
	next   int64 // where the last read ended
	ahead  int64 // up to where frames were asked for
	window int64 // bytes to read ahead; 0: reads are not sequential
}

var _ layers.Layer = (*Layer)(nil)

// Layer opens a backup for reading. Close it after use. ctx bounds the opening
// only. One that is not there is an error that wraps fs.ErrNotExist.
func (r *Repo) Layer(ctx context.Context, id layers.ID) (*Layer, error) {
	root, err := r.openRoot(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open backup %s: %w", id, err)
	}
	return r.layerOf(root), nil
}

// layerOf is the layer of a root that was read.
func (r *Repo) layerOf(root *root) *Layer {
	l := &Layer{repo: r, root: root}
	l.ctx, l.end = context.WithCancelCause(r.life)
	return l
}

// Close ends the reads that run. Later ones return ErrClosed.
func (l *Layer) Close() error {
	l.end(ErrClosed)
	return nil
}

// Size is the volume's size in bytes.
func (l *Layer) Size() int64 { return l.root.backup.Size }

// Backup is what the repository says about the layer's backup.
func (l *Layer) Backup() Backup { return l.root.backup }

// ReadAt implements layers.Layer. Every byte that it returns was
// authenticated; an error names the object and the offset.
func (l *Layer) ReadAt(p []byte, off int64) (int, error) {
	if err := context.Cause(l.ctx); err != nil {
		return 0, err
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("read backup %s: negative offset %d", l.root.backup.ID, off)
	case off >= l.Size():
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), l.Size()-off))
	if err := l.read(p[:n], off); err != nil {
		return 0, fmt.Errorf("read backup %s at %d: %w", l.root.backup.ID, off, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read fills p. Frames that follow are asked for, but not waited for, if reads
// come one after the other.
func (l *Layer) read(p []byte, off int64) error {
	first, end := off/layers.BlockSize, blocksOf(off+int64(len(p)))
	from, to := l.readahead(off, off+int64(len(p)))
	small := from == to && len(p) <= frontMax
	need, err := l.begin(first, end, small)
	if err != nil {
		return err
	}
	if from < to {
		l.prefetch(max(end, from/layers.BlockSize), blocksOf(to))
	}
	clear(p)
	for i := range need {
		w := &need[i]
		frame, err := l.repo.frame(l.ctx, w.entry, w.front)
		if err != nil {
			return err
		}
		for _, piece := range w.pieces {
			copyPiece(p, off, piece, frame)
		}
	}
	return nil
}

// frame waits for a frame and returns its first n bytes, or more.
func (r *Repo) frame(ctx context.Context, entry *slotEntry, n int) ([]byte, error) {
	value, err := entry.wait(ctx)
	if err != nil {
		return nil, err
	}
	blocks, grown, err := value.(*keptFrame).first(n)
	if grown != 0 {
		r.cache.grow(entry, grown)
	}
	return blocks, err
}

// copyPiece copies what a piece has of the bytes from off on. The frame may end
// behind the last of them.
func copyPiece(p []byte, off int64, piece piece, frame []byte) {
	data := frame[int(piece.at)*layers.BlockSize : min(int(piece.at+piece.count)*layers.BlockSize, len(frame))]
	start := piece.block*layers.BlockSize - off
	if start < 0 {
		data, start = data[min(-start, int64(len(data))):], 0
	}
	if start < int64(len(p)) {
		copy(p[start:], data)
	}
}

// An awaited frame is in the cache, or under way to it.
type awaited struct {
	entry  *slotEntry
	pieces []piece
	front  int // bytes of it that are needed, from its first one on
}

// begin starts to fetch the frames of blocks [first, end), and returns them. Of
// a small read no more is expanded than it needs.
func (l *Layer) begin(first, end int64, small bool) ([]awaited, error) {
	var need []awaited
	for i := l.root.spans.find(first); i < len(l.root.spans.rows) && l.root.spans.rows[i].first < end; i++ {
		leaf, err := l.leaf(&l.root.spans.rows[i], first, end)
		if err != nil {
			return nil, err
		}
		frames := leaf.wantedOf(first, end)
		from := len(need)
		for i := range frames {
			w := &frames[i]
			front := w.front(end)
			if small {
				w.need = front
			}
			need = append(need, awaited{pieces: w.pieces, front: front})
		}
		for i, entry := range l.repo.request(frames) {
			need[from+i].entry = entry
		}
	}
	return need, nil
}

// prefetch asks for the frames of blocks [first, end) as far as the leaves are
// at hand.
func (l *Layer) prefetch(first, end int64) {
	for i := l.root.spans.find(first); i < len(l.root.spans.rows) && l.root.spans.rows[i].first < end; i++ {
		row := &l.root.spans.rows[i]
		entry := l.repo.leafEntry(l.root.backup.Volume, row)
		select {
		case <-entry.ready:
			if leaf, ok := entry.value.(*leaf); ok {
				l.repo.request(leaf.wantedOf(first, end))
			}
		default: // its fetch has begun: the next read finds it
		}
	}
}

// request claims frames in the cache and starts to fetch those that are not
// there.
func (r *Repo) request(frames []wanted) []*slotEntry {
	entries := make([]*slotEntry, 0, len(frames))
	var missing []wanted
	claimed := make(map[sectionKey]*slotEntry)
	for _, w := range frames {
		key := w.name()
		entry, mine := r.cache.claim(key)
		entries = append(entries, entry)
		if mine {
			claimed[key] = entry
			missing = append(missing, w)
		}
	}
	for _, g := range groups(r.placed(missing)) {
		go r.fill(g, claimed)
	}
	return entries
}

// fetchesMax bounds the requests for frames at a time, and with them the
// memory that is not the cache's.
const fetchesMax = 12

// fill fetches a group for the entries that were claimed for it.
func (r *Repo) fill(g group, claimed map[sectionKey]*slotEntry) {
	entry := func(w *wanted) *slotEntry { return claimed[w.name()] }
	select {
	case r.fetches <- struct{}{}:
		defer func() { <-r.fetches }()
	case <-r.life.Done():
		for i := range g.frames {
			r.cache.fill(entry(&g.frames[i]), nil, 0, ErrClosed)
		}
		return
	}
	var buf []byte
	if len(g.frames) > 1 {
		for i := range g.frames {
			g.frames[i].need = 0 // what is kept of one would keep the others' bytes
		}
	}
	if g.frames[0].need == 0 && g.length <= frameBytes+tagSize {
		one := storedFrames.Get().(*[frameBytes + tagSize]byte)
		defer storedFrames.Put(one)
		buf = one[:g.length]
	} else {
		buf = make([]byte, g.length)
	}
	r.fetch(r.life, &g, buf, nil, func(w *wanted, blocks []byte, err error) error {
		kept := &keptFrame{pack: w.pack.id, frame: w.frame, blocks: blocks, text: w.text}
		r.cache.fill(entry(w), kept, kept.memory(), err)
		return nil
	})
}

// storedFrames are buffers for frames as they are stored.
var storedFrames = sync.Pool{New: func() any { return new([frameBytes + tagSize]byte) }}

// memoryOf is what bytes take, in bytes: the Go runtime gives whole pages of
// 8 KiB for all but small ones, and a frame has a little beyond its end.
func memoryOf(b []byte) int64 {
	const page, small = 8 << 10, 32 << 10
	n := int64(cap(b))
	if n <= small {
		return n
	}
	return (n + page - 1) / page * page
}

// leaf returns the stacked leaf of a row, right for blocks [first, end).
func (l *Layer) leaf(row *row, first, end int64) (*leaf, error) {
	value, err := l.repo.leafEntry(l.root.backup.Volume, row).wait(l.ctx)
	if part := (*partRow)(nil); errors.As(err, &part) && !part.loses(first, end) {
		return part.known, nil
	}
	if err != nil {
		return nil, err
	}
	return value.(*leaf), nil
}

// leafEntry claims the stacked leaf of a row and starts to read it if need be.
// Its newest leaf names a row: what is below a leaf never changes. Of a row with
// damage the error is a *partRow.
func (r *Repo) leafEntry(volume layers.ID, row *row) *slotEntry {
	newest := &row.leaves[0]
	entry, mine := r.cache.claim(sectionKey{newest.pack.id, newest.number})
	if mine {
		go func() {
			part, err := r.readPart(r.life, volume, row)
			if err == nil && part.err != nil {
				err = part
			}
			if err != nil {
				r.cache.fill(entry, nil, 0, err)
				return
			}
			r.cache.fill(entry, part.known, part.known.memory(), nil)
		}()
	}
	return entry
}

// memory is about what a leaf takes, in bytes.
func (l *leaf) memory() int64 {
	return int64(24*len(l.pieces) + 24*len(l.frames) + 56*len(l.packs) + 128)
}

const (
	windowMin = 512 << 10
	windowMax = 4 << 20
)

// readahead looks at a read of [off, end) and returns the range that is to be
// asked for beyond it, empty if reads are not sequential or enough was asked
// for. The window doubles with each time that it is used up.
func (l *Layer) readahead(off, end int64) (from, to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sequential := off == l.next && off > 0
	l.next = end
	if !sequential {
		l.window, l.ahead = 0, end
		return 0, 0
	}
	if l.ahead > end+l.window/2 {
		return 0, 0
	}
	l.window = min(max(windowMin, 2*l.window), windowMax)
	from, to = max(l.ahead, end), min(end+l.window, l.Size())
	l.ahead = to
	return from, to
}

// Extents implements layers.Layer. A backup says something about every byte:
// there are no gaps.
func (l *Layer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		off, end := max(off, 0), min(off+n, l.Size())
		if off+n < off { // n may be huge
			end = l.Size()
		}
		next := off
		var last layers.Extent // not yet yielded: it may grow
		put := func(e layers.Extent) bool {
			e = e.Clip(off, end-off)
			if e.Len == 0 {
				return true
			}
			next = e.End()
			if last.Len > 0 && last.Kind == e.Kind {
				last.Len += e.Len
				return true
			}
			ok := last.Len == 0 || yield(last, nil)
			last = e
			return ok
		}
		for p, err := range l.pieces(off/layers.BlockSize, blocksOf(end)) {
			if err != nil {
				yield(layers.Extent{}, fmt.Errorf("map of backup %s: %w", l.root.backup.ID, err))
				return
			}
			data := layers.Extent{Off: p.block * layers.BlockSize, Len: int64(p.count) * layers.BlockSize, Kind: layers.Data}
			if data.Off > next && !put(layers.Extent{Off: next, Len: data.Off - next, Kind: layers.Zero}) || !put(data) {
				return
			}
		}
		if end > next && !put(layers.Extent{Off: next, Len: end - next, Kind: layers.Zero}) {
			return
		}
		if last.Len > 0 {
			yield(last, nil)
		}
	}
}

// pieces yields the data that overlaps blocks [first, end).
func (l *Layer) pieces(first, end int64) iter.Seq2[piece, error] {
	return func(yield func(piece, error) bool) {
		rows := l.root.spans.rows
		for i := l.root.spans.find(first); i < len(rows) && rows[i].first < end; i++ {
			leaf, err := l.leaf(&rows[i], first, end)
			if err != nil {
				yield(piece{}, err)
				return
			}
			for _, p := range leaf.pieces {
				if p.end() > first && p.block < end && !p.isZero() && !yield(p, nil) {
					return
				}
			}
		}
	}
}
