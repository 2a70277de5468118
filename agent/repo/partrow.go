package repo

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A partRow is what can be told of a row some of whose leaves cannot be read.
// The leaves above the first such one are right whatever lies below; where they
// are silent, nobody knows. It is the error of who needs all of it, or what is
// lost.
type partRow struct {
	known  *leaf   // as a base
	lost   []Range // of the volume, that known says nothing of
	broken []int   // indices of the leaves that cannot be read
	err    error   // why the first of them cannot; nil: none
}

func (p *partRow) Error() string { return p.err.Error() }
func (p *partRow) Unwrap() error { return p.err }

// loses reports whether something of blocks [first, end) is lost.
func (p *partRow) loses(first, end int64) bool {
	for _, r := range p.lost {
		if r.Off < end*layers.BlockSize && r.Off+r.Len > first*layers.BlockSize {
			return true
		}
	}
	return false
}

// readPart reads the leaves of a row as far as they are whole. Its error is not
// of damage.
func (r *Repo) readPart(ctx context.Context, volume layers.ID, row *row) (*partRow, error) {
	parts, errs := make([]*leaf, len(row.leaves)), make([]error, len(row.leaves))
	g, group := errgroup.WithContext(ctx)
	for i := range row.leaves {
		g.Go(func() error {
			parts[i], errs[i] = r.readLeaf(group, volume, row, i)
			if isDamage(errs[i]) {
				return nil
			}
			return errs[i]
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	p := new(partRow)
	for i, err := range errs {
		if err != nil {
			p.broken = append(p.broken, i)
		}
	}
	if len(p.broken) > 0 {
		p.err = errs[p.broken[0]]
		parts = parts[:p.broken[0]]
	}
	p.known = stacked(row, parts)
	if p.err != nil {
		p.lost = p.known.silent()
	}
	p.known.base = true
	p.known.tidy()
	return p, nil
}

// stacked puts leaves of a row on top of each other, the first one uppermost.
func stacked(row *row, parts []*leaf) *leaf {
	l := &leaf{first: row.first, blocks: row.blocks}
	for i := len(parts) - 1; i >= 0; i-- {
		l = overLeaf(parts[i], l)
	}
	return l
}

// silent lists the parts of the span that no piece is of.
func (l *leaf) silent() (ranges []Range) {
	next := l.first
	gap := func(end int64) {
		if end > next {
			ranges = append(ranges, Range{next * layers.BlockSize, (end - next) * layers.BlockSize})
		}
	}
	for i := range l.pieces {
		gap(l.pieces[i].block)
		next = l.pieces[i].end()
	}
	gap(l.first + l.blocks)
	return ranges
}

// isDamage tells damage, which stays, from a store that does not answer.
func isDamage(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) }
