package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// rootGuess is how much of a root is asked for when its size is not known:
// enough for 1 TiB.
const rootGuess = 64 << 10

// openRoot finds a backup and reads its root, its key, its tombstone and what
// was moved at the same time: after a listing, one round trip.
func (r *Repo) openRoot(ctx context.Context, id layers.ID) (*root, error) {
	listed, fresh, err := r.find(ctx, id)
	if err != nil {
		return nil, err
	}
	var found *root
	g, ctx := errgroup.WithContext(ctx)
	if !fresh {
		g.Go(func() error { return r.checkLive(ctx, listed.name) })
	}
	g.Go(func() error {
		r.expectKey(ctx, listed.name.volume)
		return nil
	})
	g.Go(func() error {
		r.loadMoves(ctx, listed.name.volume) // early; whoever misses a section looks again
		return nil
	})
	var rootErr error
	g.Go(func() error {
		found, rootErr = r.readRoot(ctx, listed)
		return nil // a tombstone explains a root that is gone
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return found, rootErr
}

// readRoot reads a root whole.
func (r *Repo) readRoot(ctx context.Context, listed listedRoot) (*root, error) {
	b, err := r.readRootObject(ctx, listed)
	if err != nil {
		return nil, err
	}
	return r.openRootObject(ctx, b, listed.name)
}

// readRootObject reads the object of a root. That it has the length that its
// header says is for openRootObject.
func (r *Repo) readRootObject(ctx context.Context, listed listedRoot) ([]byte, error) {
	name := listed.name.String()
	size := listed.size
	if size <= 0 || size > maxRoot {
		size = rootGuess
	}
	b, err := r.readFront(ctx, name, int(size)+1) // One more, so that a longer object is seen.
	if err != nil {
		return nil, rootGone(err, listed.name)
	}
	h, err := parseRootHeader(b, listed.name)
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	if int64(len(b)) >= h.total {
		return b, nil
	}
	b, err = r.readAll(ctx, name, h.total) // It is larger than anybody knew.
	return b, rootGone(err, listed.name)
}

// openRootObject reads what root.seal made, and opens b in place.
func (r *Repo) openRootObject(ctx context.Context, b []byte, name rootName) (*root, error) {
	h, err := parseRootHeader(b, name)
	if err != nil {
		return nil, damaged(name.String(), 0, err)
	}
	return r.openSections(ctx, &h, b, name)
}

// expectKey reads the newest key of a volume, which its roots are likely to be
// sealed with. Whoever needs one will see the error.
func (r *Repo) expectKey(ctx context.Context, volume layers.ID) {
	if ref, ok := r.index.newestKey(volume); ok && r.Encrypted() {
		r.volumeKey(ctx, ref)
	}
}

// readSummary reads only what a root says about its backup, and the key beside
// it: after a listing, one round trip.
func (r *Repo) readSummary(ctx context.Context, listed listedRoot) (Backup, error) {
	name := listed.name.String()
	expected := make(chan struct{})
	go func() {
		defer close(expected)
		r.expectKey(ctx, listed.name.volume)
	}()
	defer func() { <-expected }()
	b, err := r.readFront(ctx, name, summaryRead)
	if err != nil {
		return Backup{}, rootGone(err, listed.name)
	}
	h, err := parseRootHeader(b, listed.name)
	if err != nil {
		return Backup{}, damaged(name, 0, err)
	}
	end := headerSize + int64(h.inner)
	if int64(len(b)) < end {
		if b, err = r.readRest(ctx, name, b, end); err != nil {
			return Backup{}, err
		}
	}
	key, err := r.keyOf(ctx, &h, name)
	if err != nil {
		return Backup{}, err
	}
	root, _, err := openSummary(key.sealer(h.id), &h, b, listed.name)
	if err != nil {
		return Backup{}, damaged(name, headerSize, err)
	}
	root.backup.Protected = listed.held
	return root.backup, nil
}

// readFront reads at most n bytes from the start of an object.
func (r *Repo) readFront(ctx context.Context, name string, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.store.Get(ctx, name, b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read root: %w", err)
	}
	return b[:got], nil
}

// readRest completes b to the first end bytes of the object.
func (r *Repo) readRest(ctx context.Context, name string, b []byte, end int64) ([]byte, error) {
	have := int64(len(b))
	if have >= end {
		return b, nil
	}
	whole := make([]byte, end)
	copy(whole, b)
	return whole, r.readRange(ctx, name, whole[have:], have)
}

// rootGone makes the absence of a listed root the absence of its backup.
func rootGone(err error, name rootName) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: its root %s is gone", absent(name.backup), name)
	}
	return err
}

func parseRootHeader(b []byte, name rootName) (header, error) {
	h, err := parseHeader(b)
	switch {
	case err != nil:
		return h, err
	case h.kind != kindRoot:
		return h, fmt.Errorf("kind of object %d, expected a root", h.kind)
	case h.key.volume != name.volume:
		return h, fmt.Errorf("sealed for volume %s", h.key.volume)
	case h.inner > maxSummary+tagSize || h.total > maxRoot:
		return h, fmt.Errorf("lengths %d and %d are out of bounds", h.inner, h.total)
	}
	return h, nil
}

// keyOf returns the key that a header names, if it is the one it is sealed with.
func (r *Repo) keyOf(ctx context.Context, h *header, name string) (*volumeKey, error) {
	if h.suite != r.head.suite {
		return nil, damaged(name, 13, fmt.Errorf("sealed by suite %d, the repository has %d", h.suite, r.head.suite))
	}
	key, err := r.volumeKey(ctx, h.key)
	if err != nil {
		return nil, err
	}
	if key.commitment(h.id) != h.commitment {
		return nil, damaged(name, 64, errors.New("sealed with another key"))
	}
	return key, nil
}

func openSummary(s *sealer, h *header, b []byte, name rootName) (*root, fields, error) {
	text, err := s.open(b[headerSize:headerSize+int(h.inner)], sectionSummary, 0, b[:headerBound])
	if err != nil {
		return nil, nil, err
	}
	root, f, err := parseSummary(text, name)
	return root, f, err
}

func (r *Repo) openSections(ctx context.Context, h *header, b []byte, name rootName) (*root, error) {
	key, err := r.keyOf(ctx, h, name.String())
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != h.total {
		return nil, damaged(name.String(), h.total, fmt.Errorf("%d bytes, expected %d", len(b), h.total))
	}
	s := key.sealer(h.id)
	root, f, err := openSummary(s, h, b, name)
	if err != nil {
		return nil, damaged(name.String(), headerSize, err)
	}
	root.key = h.key
	at := headerSize + int64(h.inner)
	if err := root.openSpans(s, b[:headerBound], b[at:]); err != nil {
		return nil, damaged(name.String(), at, err)
	}
	if err := root.setInventory(f[fieldInventory]); err != nil {
		return nil, damaged(name.String(), headerSize, err)
	}
	return root, nil
}

func (r *root) openSpans(s *sealer, header, stored []byte) error {
	text, err := s.open(stored, sectionSpans, 1, header)
	if err != nil {
		return err
	}
	if text, err = expand(text, maxSpansText); err != nil {
		return err
	}
	r.spans, err = parseSpans(text, r.name.volume)
	return err
}
