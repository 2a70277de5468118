package repo

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A Writer takes what Restore reads. Its methods are called by several
// goroutines at once, never for the same bytes.
type Writer interface {
	WriteAt(p []byte, off int64) (int, error)
	WriteZeroes(off, n int64) error
}

// RestoreOptions choose how Restore writes.
type RestoreOptions struct {
	Blank bool // the destination is known to be all zeros

	// Progress is told the bytes of the volume that are dealt with, zeros
	// included, and its size, if it is not nil; never by two goroutines at
	// once.
	Progress func(done, total int64)

	// From is where an earlier Restore of the same backup had got to, to a
	// destination that has kept everything up to there. It needs Blank.
	From RestorePoint

	// Checkpoint, if it is not nil, is told how far the restore got, whenever
	// that is further; an error ends it. What the point stands for has been
	// written, and not flushed. The restore goes on meanwhile; it is never
	// called by two goroutines at once.
	Checkpoint func(RestorePoint) error

	// Lost, if it is not nil, lets the restore go on past damage: it is told of
	// each range of the volume that cannot be read, in any order, and that range
	// becomes zeros. An error ends the restore. It is never called by two
	// goroutines at once, nor beside Checkpoint. What is lost before From was told
	// to the earlier Restore; some of it may be told again.
	Lost func(Loss) error
}

// A RestorePoint says how far a restore got. It is plain data, for the caller
// to keep.
type RestorePoint struct {
	Part   int   // parts of restoreRows rows that are done
	Groups int   // of the next part: groups of frames that are done, from the first on
	Of     int   // how many those are in all; another number: the part begins anew
	Sum    int64 // of where those lie; another one, since they were moved: the same
	Bytes  int64 // of the volume, that are dealt with
}

const (
	restoreRows    = 8 // whose leaves are in memory at a time
	restoreFetches = 8 // groups of frames that are under way at a time, all in one arena
)

// Restore writes the whole backup to dst, zeros included unless dst is blank.
// Every byte is authenticated before it is written; an error names the object
// and the offset, and dst is then incomplete. Restore neither flushes dst nor
// touches what it has past the backup's size.
func (r *Repo) Restore(ctx context.Context, id layers.ID, dst Writer, o RestoreOptions) error {
	root, err := r.openRoot(ctx, id)
	if err != nil {
		return fmt.Errorf("restore backup %s: %w", id, err)
	}
	arena, err := takeArena()
	if err != nil {
		return fmt.Errorf("restore backup %s: %w", id, err)
	}
	defer freeArena(arena)
	s := &restore{repo: r, root: root, dst: dst, options: o, arena: arena}
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("restore backup %s: %w", id, err)
	}
	return nil
}

type restore struct {
	repo    *Repo
	root    *root
	dst     Writer
	options RestoreOptions
	arena   []byte // for the groups under way

	mu    sync.Mutex
	done  int64        // bytes of the volume; under mu
	point RestorePoint // under mu

	telling sync.Mutex // held by who calls Checkpoint or Lost
}

// run goes through the volume a few spans at a time, and through those in the
// order of the packs: each range of a pack is then read once.
func (s *restore) run(ctx context.Context) error {
	rows := s.root.spans.rows
	from := s.options.From
	next := int64(0) // blocks before it are written
	if skip := from.Part * restoreRows; skip > 0 && skip <= len(rows) && s.options.Blank {
		next = rows[skip-1].first + rows[skip-1].blocks
		rows = rows[skip:]
		s.point = RestorePoint{Part: from.Part, Bytes: next * layers.BlockSize}
		s.done = s.point.Bytes
	}
	s.progress(0)
	for len(rows) > 0 {
		part := rows[:min(len(rows), restoreRows)]
		rows = rows[len(part):]
		leaves, err := s.leaves(ctx, part)
		if err != nil {
			return err
		}
		if next, err = s.zeros(ctx, leaves, next); err != nil {
			return err
		}
		if err := s.data(ctx, leaves); err != nil {
			return err
		}
		// The end of the part, so that who goes on from there counts as this does.
		end := min(part[len(part)-1].first+part[len(part)-1].blocks, blocksOf(s.root.backup.Size))
		if err := s.zero(ctx, next, end); err != nil {
			return err
		}
		next = max(next, end)
		if err := s.partDone(); err != nil {
			return err
		}
	}
	return s.zero(ctx, next, blocksOf(s.root.backup.Size))
}

// leaves reads the map of a part.
func (s *restore) leaves(ctx context.Context, part []row) ([]*leaf, error) {
	if s.options.Lost != nil {
		return s.readSome(ctx, part)
	}
	return s.repo.readRows(ctx, s.root.name.volume, part)
}

// readRows reads the stacked leaves of several rows at the same time.
func (r *Repo) readRows(ctx context.Context, volume layers.ID, rows []row) ([]*leaf, error) {
	leaves := make([]*leaf, len(rows))
	g, ctx := errgroup.WithContext(ctx)
	for i, row := range rows {
		g.Go(func() (err error) {
			leaves[i], err = r.readRow(ctx, volume, row)
			return err
		})
	}
	return leaves, g.Wait()
}

// zeros writes the gaps between the data from block next on, and returns the
// end of the last data.
func (s *restore) zeros(ctx context.Context, leaves []*leaf, next int64) (int64, error) {
	for _, l := range leaves {
		for i := range l.pieces {
			if err := s.zero(ctx, next, l.pieces[i].block); err != nil {
				return 0, err
			}
			next = l.pieces[i].end()
		}
	}
	return next, nil
}

func (s *restore) zero(ctx context.Context, first, end int64) error {
	off := first * layers.BlockSize
	n := min(end*layers.BlockSize, s.root.backup.Size) - off
	if n <= 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if !s.options.Blank {
		if err := s.dst.WriteZeroes(off, n); err != nil {
			return fmt.Errorf("write zeros at %d: %w", off, err)
		}
	}
	s.progress(n)
	return nil
}

// data fetches the frames of the leaves and writes what is needed of them.
func (s *restore) data(ctx context.Context, leaves []*leaf) error {
	all := groups(s.repo.placed(allWanted(leaves)))
	done := &prefix{finished: make([]bool, len(all)), sizes: make([]int64, len(all)), sum: sumOf(all)}
	for i := range all {
		done.sizes[i] = all[i].needed()
	}
	s.skip(done)
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan int)
	g.Go(func() error {
		defer close(todo)
		for i := done.count; i < len(all); i++ {
			select {
			case todo <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for i := range restoreFetches {
		g.Go(func() error {
			buf := s.arena[i*groupMax : (i+1)*groupMax]
			plain := newPlain()
			for i := range todo {
				group := &all[i]
				put := func(w *wanted, blocks []byte, err error) error { return s.write(ctx, w, blocks, err) }
				if err := s.repo.fetch(ctx, group, buf, plain, put); err != nil {
					return err
				}
				if err := s.finish(done, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// needed is how many bytes of the volume a group holds.
func (g *group) needed() (n int64) {
	for i := range g.frames {
		for _, p := range g.frames[i].pieces {
			n += int64(p.count)
		}
	}
	return n * layers.BlockSize
}

// A prefix is how many of the groups of a part are done without a gap.
type prefix struct {
	finished []bool
	sizes    []int64 // bytes of the volume, by group
	count    int
	sum      int64 // of where the groups lie
}

// sumOf tells a way to read a part from others.
func sumOf(all []group) (sum int64) {
	crc := uint32(0)
	for i := range all {
		b := binary.LittleEndian.AppendUint64(all[i].pack.id[:len(objectID{}):len(objectID{})], uint64(all[i].off))
		crc = crc32.Update(crc, castagnoli, binary.LittleEndian.AppendUint64(b, uint64(all[i].length)))
	}
	return int64(crc)
}

// skip leaves out what an earlier restore did of the part, if this is where it
// stopped.
func (s *restore) skip(p *prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.point.Groups, s.point.Of, s.point.Sum, s.point.Bytes = 0, len(p.sizes), p.sum, s.done
	from := s.options.From
	if !s.options.Blank || from.Part != s.point.Part || from.Of != len(p.sizes) || from.Sum != p.sum || from.Groups > from.Of {
		return
	}
	for ; p.count < from.Groups; p.count++ {
		s.add(p.sizes[p.count])
	}
	s.point.Groups, s.done = p.count, s.point.Bytes
}

// add moves the point on. The volume's last block may be cut. The caller holds
// mu.
func (s *restore) add(n int64) { s.point.Bytes = min(s.point.Bytes+n, s.root.backup.Size) }

// finish says that a group is done.
func (s *restore) finish(p *prefix, group int) error {
	s.mu.Lock()
	p.finished[group] = true
	before := p.count
	for ; p.count < len(p.finished) && p.finished[p.count]; p.count++ {
		s.add(p.sizes[p.count])
	}
	further := p.count > before
	s.point.Groups = p.count
	s.mu.Unlock()
	if !further {
		return nil
	}
	return s.tell()
}

func (s *restore) partDone() error {
	s.mu.Lock()
	s.point = RestorePoint{Part: s.point.Part + 1, Bytes: s.done}
	s.mu.Unlock()
	return s.tell()
}

// tell calls Checkpoint, unless somebody else does: it will be told again.
func (s *restore) tell() error {
	if s.options.Checkpoint == nil || !s.telling.TryLock() {
		return nil
	}
	defer s.telling.Unlock()
	s.mu.Lock()
	point := s.point
	s.mu.Unlock()
	return s.options.Checkpoint(point)
}

// allWanted lists every frame of the leaves.
func allWanted(leaves []*leaf) []wanted {
	var frames []wanted
	for _, l := range leaves {
		frames = append(frames, l.wantedOf(l.first, l.first+l.blocks)...)
	}
	return frames
}

// write puts the pieces of a frame where they belong.
func (s *restore) write(ctx context.Context, w *wanted, blocks []byte, err error) error {
	if s.options.Lost != nil && isDamage(err) {
		return s.loseFrame(ctx, w, err)
	}
	if err != nil {
		return err
	}
	for _, p := range w.pieces {
		off := p.block * layers.BlockSize
		data := blocks[int(p.at)*layers.BlockSize : int(p.at+p.count)*layers.BlockSize]
		data = data[:max(0, min(int64(len(data)), s.root.backup.Size-off))]
		if _, err := s.dst.WriteAt(data, off); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(data), off, err)
		}
		s.progress(int64(len(data)))
	}
	return nil
}

func (s *restore) progress(n int64) {
	if s.options.Progress == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done += n
	s.options.Progress(s.done, s.root.backup.Size)
}
