package repo

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"varve/agent/object"
	"varve/layers"
)

const (
	// buffersMax is how many packs a backup has in memory: one is filled, the
	// others are on their way; all are when the store is slower than the volume.
	buffersMax = 3
	smallMax   = 4 << 20
	mergesMax  = 4 // spans whose leaves are merged at a time

	// leavesMax is how many bytes of leaves are kept before they are written:
	// the map of about 600 GiB.
	leavesMax = 16 << 20
)

// A writer makes one backup. Its goroutines: the cutter makes tasks, workers
// read and compress them, and the one that runs copy takes them in order,
// seals them into packs, and closes a leaf for each span; merges and uploads
// run beside it.
type writer struct {
	repo      *Repo
	job       *Job
	key       *volumeKey
	session   *session
	ledger    *ledger
	footing   *footing
	root      *root
	parent    *spans // nil: no parent
	parentKey keyRef // that the parent's root is sealed with
	taken     *taken // from earlier tries; nil: nothing

	trier   trier
	matcher matcher        // belongs to the task whose turn it is
	oldest  atomic.Int64   // no block before it is in the data pack
	found   []storedRepeat // room for those of a task

	data    packBuilder
	up      *uploader
	packs   []packSize // that were sent off
	objects int64
	stored  int64
	done    bool // an earlier try made the backup: root.backup

	leaf      *leaf // of the span at hand
	mu        sync.Mutex
	updates   []*spanUpdate // under mu
	waiting   []*newLeaf    // that have no pack yet; under mu
	waitBytes int           // under mu
	merges    *errgroup.Group
}

// copy moves the changed blocks into packs and makes the map.
func (w *writer) copy(ctx context.Context) error {
	total, err := w.total()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan struct{})
	g.Go(func() error { return w.session.startLate(ctx, copied) })
	w.up = newUploader(ctx, w.repo.store)
	w.merges = new(errgroup.Group)
	w.merges.SetLimit(mergesMax)

	workers := runtime.GOMAXPROCS(0) + 1 // one more, for the time that reads take
	free := make(chan *task, 4*workers)
	for range cap(free) {
		free <- newTask()
	}
	work, order := make(chan *task, cap(free)), make(chan *task, cap(free))
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return w.cut(ctx, free, work, order)
	})
	for range workers {
		g.Go(func() error { return w.work(ctx, work) })
	}
	g.Go(func() error {
		defer close(copied)
		return w.collect(ctx, free, order, total)
	})
	err = g.Wait()
	if merged := w.merges.Wait(); err == nil {
		err = merged
	}
	if sent := w.up.wait(); err == nil {
		err = sent
	}
	w.up.close()
	return err
}

// work reads and compresses. Blocks are matched in the order of the tasks.
func (w *writer) work(ctx context.Context, work <-chan *task) error {
	source, ids := w.job.Source, newKeyed(w.key.ids)
	for t := range work {
		err := object.InTurn(ctx, func(context.Context) error {
			t.load(source, source.Size())
			return nil
		})
		if err != nil {
			return err
		}
		select {
		case <-t.before:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		w.match(t)
		t.matched <- struct{}{}
		err = object.InTurn(ctx, func(context.Context) error {
			t.dropMatched(source, w.oldest.Load())
			t.pack(ids, w.job.Compression, &w.trier)
			return nil
		})
		if err != nil {
			return err
		}
		t.done <- struct{}{}
	}
	return nil
}

// match looks for blocks of the task that earlier ones had.
func (w *writer) match(t *task) {
	if t.err != nil || len(t.blocks) == 0 {
		return
	}
	w.matcher.enter(t.span)
	t.matches = w.matcher.match(t.matches, t.blocks, t.sums)
}

// total is how many bytes will be read. It also counts what changed: for a full
// backup, whose parent is silence, zeros change nothing.
func (w *writer) total() (total int64, err error) {
	for c, err := range w.job.changes() {
		if err != nil {
			return 0, err
		}
		n := c.count * layers.BlockSize
		if !c.zero {
			total += n
		}
		if !c.zero || w.root.backup.Incremental {
			w.root.backup.Changed += n
		}
	}
	return total, nil
}

// cut makes tasks of the changes.
func (w *writer) cut(ctx context.Context, free <-chan *task, work, order chan<- *task) error {
	c := cutter{spanOf: w.spanOf}
	first := make(chan struct{})
	close(first)
	var before <-chan struct{} = first
	c.emit = func(span run, runs, zeros []run) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case t := <-free:
			t.before, before = before, t.matched
			t.span, t.seed, t.seeded = span, w.taken.hand(span), 0
			if t.seed != nil {
				t.seeded = t.seed.dataBlocks()
			}
			t.runs = append(t.runs[:0], runs...)
			t.zeros = append(t.zeros[:0], zeros...)
			order <- t // never full: there are no more tasks
			work <- t
		}
		return nil
	}
	for ch, err := range w.job.changes() {
		if err != nil {
			return err
		}
		if ch.zero && w.parent == nil {
			continue // where a full backup is silent, it is zero
		}
		var err error
		if w.taken != nil {
			err = w.taken.add(ctx, &c, ch)
		} else {
			err = c.add(ch)
		}
		if err != nil {
			return err
		}
	}
	if err := w.taken.leave(&c); err != nil {
		return err
	}
	return c.flush()
}

// spanOf returns the span of a block: 1 GiB, or 128 MiB where the parent's map
// was cut.
func (w *writer) spanOf(block int64) run {
	whole := run{block - block%spanBlocks, spanBlocks}
	if w.parent == nil {
		return whole
	}
	i := w.parent.find(whole.block)
	if i == len(w.parent.rows) || w.parent.rows[i].blocks == spanBlocks || w.parent.rows[i].first >= whole.block+whole.count {
		return whole
	}
	return run{block - block%splitBlocks, splitBlocks}
}

// collect takes the tasks in order.
func (w *writer) collect(ctx context.Context, free chan<- *task, order <-chan *task, total int64) error {
	done := int64(0)
	report := func() {
		if w.job.Progress != nil {
			w.job.Progress(done, total)
		}
	}
	report()
	for t := range order {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.done:
		}
		if t.err != nil {
			return t.err
		}
		if err := w.take(ctx, t); err != nil {
			return err
		}
		if n := t.bytes(); n > 0 {
			done += n
			report()
		}
		free <- t
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	w.taken.settle(w)
	if err := w.closeSpan(ctx); err != nil {
		return err
	}
	if err := w.merges.Wait(); err != nil {
		return err
	}
	if err := w.compact(ctx); err != nil {
		return err
	}
	if err := w.flush(ctx, true); err != nil {
		return err
	}
	w.assemble()
	return nil
}

// take adds one task to the pack and the leaf at hand.
func (w *writer) take(ctx context.Context, t *task) error {
	if w.leaf == nil || w.leaf.first != t.span.block {
		if err := w.closeSpan(ctx); err != nil {
			return err
		}
		w.leaf = t.seed
		if w.leaf == nil {
			w.leaf = &leaf{first: t.span.block, blocks: t.span.count}
		}
	}
	for _, r := range t.zeros {
		w.leaf.pieces = append(w.leaf.pieces, piece{block: r.block, count: int32(r.count), frame: zeroPiece})
	}
	for _, r := range runsOf(t.blank) {
		w.leaf.pieces = append(w.leaf.pieces, piece{block: r.block, count: int32(r.count), frame: zeroPiece})
	}
	if len(t.matches) > 0 && !w.repeat(t.matches) {
		if err := w.whole(ctx, t); err != nil {
			return err
		}
	}
	if len(t.blocks) == 0 {
		return nil
	}
	return w.addFrame(ctx, t)
}

// whole makes a frame of all blocks of a task: the pack that had what they
// repeat was closed meanwhile.
func (w *writer) whole(ctx context.Context, t *task) error {
	err := object.InTurn(ctx, func(context.Context) error {
		t.load(w.job.Source, w.job.Source.Size())
		t.pack(newKeyed(w.key.ids), w.job.Compression, &w.trier)
		return nil
	})
	if err == nil {
		err = t.err
	}
	return err
}

func (w *writer) addFrame(ctx context.Context, t *task) error {
	text, runs := t.text(), runsOf(t.blocks)
	if err := w.room(ctx, len(text)+tagSize); err != nil {
		return err
	}
	if w.data.empty() {
		w.oldest.Store(t.blocks[0])
	}
	number, off, stored := w.data.add(text, section{
		kind: sectionFrame, blocks: uint8(len(t.blocks)), zstd: t.zstd, id: t.id, runs: runs,
	})
	w.root.backup.Logical += int64(len(t.plain))

	w.leaf.add(packRef{w.data.id, w.key.ref}, frameRef{
		number: number, off: off, stored: stored, blocks: uint8(len(t.blocks)), zstd: t.zstd,
	}, runs)
	return nil
}

// room makes sure that the data pack is open and has place for a section.
func (w *writer) room(ctx context.Context, stored int) error {
	if w.data.sealer != nil && !w.data.fits(stored, w.repo.packTarget) {
		w.closeData()
	}
	if w.data.sealer != nil {
		return nil
	}
	return w.begin(ctx, &w.data, inData)
}

// begin starts a pack.
func (w *writer) begin(ctx context.Context, b *packBuilder, where place) error {
	buf, err := w.up.buffer(ctx)
	if err != nil {
		return err
	}
	id, err := w.ledger.pack(where)
	if err != nil {
		return err
	}
	w.session.stores()
	b.begin(where, id, w.job.ID, w.key, buf)
	return nil
}

// closeData sends the data pack off, if there is one.
func (w *writer) closeData() {
	if w.data.sealer == nil {
		return
	}
	w.root.packs++
	w.send(&w.data)
}

// send finishes a pack and uploads it.
func (w *writer) send(b *packBuilder) {
	object := b.finish()
	w.packs = append(w.packs, packSize{b.where, b.id, int64(len(object))})
	w.objects++
	w.stored += int64(len(object))
	w.up.put(packName(b.where, b.id), object)
	b.sealer = nil
}
