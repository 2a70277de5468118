package repo

import (
	"context"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A Loss is a range of a volume that cannot be restored.
type Loss struct {
	Range
	Err error // why: a DamageError
}

// readSome is readRows that goes on past damage, which it tells.
func (s *restore) readSome(ctx context.Context, rows []row) ([]*leaf, error) {
	parts := make([]*partRow, len(rows))
	g, group := errgroup.WithContext(ctx)
	for i := range rows {
		g.Go(func() (err error) {
			parts[i], err = s.repo.readPart(group, s.root.name.volume, &rows[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	leaves := make([]*leaf, len(rows))
	for i, p := range parts {
		leaves[i] = p.known
		for _, r := range clip(p.lost, s.root.backup.Size) {
			if err := s.lose(r, p.err); err != nil {
				return nil, err
			}
		}
	}
	return leaves, nil
}

// loseFrame tells what is lost with a frame, and makes it zeros.
func (s *restore) loseFrame(ctx context.Context, w *wanted, why error) error {
	for _, p := range w.pieces {
		for _, r := range clip([]Range{{p.block * layers.BlockSize, int64(p.count) * layers.BlockSize}}, s.root.backup.Size) {
			if err := s.lose(r, why); err != nil {
				return err
			}
		}
		if err := s.zero(ctx, p.block, p.end()); err != nil {
			return err
		}
	}
	return nil
}

func (s *restore) lose(r Range, why error) error {
	s.telling.Lock()
	defer s.telling.Unlock()
	return s.options.Lost(Loss{r, why})
}
