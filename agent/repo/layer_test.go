package repo

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
	"varve/layers/layertest"
)

func TestLayerConforms(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		s := newSample(t, encrypted)
		r, err := Open(t.Context(), storeOf(t, s.objects), Key{Passphrase: map[bool]string{true: secret}[encrypted]})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		l, err := r.Layer(t.Context(), s.last)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		kinds := make([]layers.Kind, blocksOf(int64(len(s.image))))
		for b := range kinds {
			block := s.image[b*layers.BlockSize : min((b+1)*layers.BlockSize, len(s.image))]
			if kinds[b] = layers.Data; bytes.Equal(block, zeroBlock[:len(block)]) {
				kinds[b] = layers.Zero
			}
		}
		layertest.Run(t, l, layertest.Content{Bytes: s.image, Kinds: kinds})
		const part = 40_000 // the test reads it in every way, byte by byte too
		if err := iotest.TestReader(io.NewSectionReader(l, 0, part), s.image[:part]); err != nil {
			t.Error(err)
		}
	}
}

// counted counts the requests that a store sees, by their kind.
type counted struct {
	objecttest.Hook
	mu   sync.Mutex
	seen []string // "get p/…"
}

func countRequests(s object.Store) *counted {
	c := new(counted)
	c.Store = s
	c.Before = func(op, name string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen = append(c.seen, op+" "+name)
		return nil
	}
	return c
}

func (c *counted) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = nil
	return seen
}

func count(seen []string, prefix string) (n int) {
	for _, s := range seen {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

func TestFirstByteTakesThreeRoundTrips(t *testing.T) {
	// Root, leaf, frame; the key and the tombstone are asked for beside the
	// root. After that one request for each miss, and none for a hit.
	s := newSample(t, true)
	c := countRequests(storeOf(t, s.objects))
	r, err := Open(t.Context(), c, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
	}
	c.take()
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	opened := c.take()
	if len(opened) != 2 || count(opened, "get v/") != 2 {
		t.Errorf("opening a known backup: %q, want its root and its tombstone", opened)
	}
	p := make([]byte, 4096)
	if _, err := l.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	first := c.take()
	leaves := len(l.root.spans.rows[0].leaves)
	if len(first) != leaves+1 {
		t.Errorf("the first read: %q, want %d leaves and a frame", first, leaves)
	}
	if _, err := l.ReadAt(p[:100], 100); err != nil {
		t.Fatal(err)
	}
	if again := c.take(); len(again) != 0 {
		t.Errorf("a read of what the cache has: %q", again)
	}
	if _, err := l.ReadAt(p, 300<<10); err != nil {
		t.Fatal(err)
	}
	if miss := c.take(); len(miss) > 1 {
		t.Errorf("a miss: %q, want one request", miss)
	}
}

func TestReadsOfOneFrameShareAFetch(t *testing.T) {
	s := newSample(t, false)
	c := countRequests(storeOf(t, s.objects))
	r, err := Open(t.Context(), c, Key{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.take()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			p := make([]byte, 512)
			if _, err := l.ReadAt(p, 4096); err != nil || !bytes.Equal(p, s.image[4096:4096+512]) {
				t.Errorf("read: %v", err)
			}
		})
	}
	wg.Wait()
	if n, most := len(c.take()), len(l.root.spans.rows[0].leaves)+1; n == 0 || n > most {
		t.Errorf("20 reads at once took %d requests, want 1 to %d", n, most)
	}
}

func TestSequentialReadsAreGathered(t *testing.T) {
	s := newSample(t, false)
	c := countRequests(storeOf(t, s.objects))
	r, err := Open(t.Context(), c, Key{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), s.ids[0]) // nothing scattered yet
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.take()
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{io.NewSectionReader(l, 0, 512<<10)}, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	packs := count(c.take(), "get p/")
	if packs > 12 {
		t.Errorf("512 KiB in reads of 4 KiB took %d requests for frames", packs)
	}
}

func TestClosedLayer(t *testing.T) {
	s := newSample(t, false)
	block, entered := make(chan struct{}), make(chan struct{}, 8)
	var armed atomic.Bool
	hook := &objecttest.Hook{Store: storeOf(t, s.objects), Before: func(op, name string) error {
		if armed.Load() && strings.HasPrefix(name, "p/") {
			entered <- struct{}{}
			<-block
		}
		return nil
	}}
	r, err := Open(t.Context(), hook, Key{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	done := make(chan error)
	go func() {
		_, err := l.ReadAt(make([]byte, 10), 0)
		done <- err
	}()
	<-entered
	l.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("a read during Close: %v", err)
	}
	armed.Store(false)
	close(block)
	if _, err := l.ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	other, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("another layer of the same backup: %v", err)
	}
	r.Close()
	if _, err := other.ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("a read after the repository's Close: %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(1000)
	for i := range uint32(100) {
		e, mine := c.claim(sectionKey{number: i})
		if !mine {
			t.Fatalf("entry %d is there already", i)
		}
		c.fill(e, []byte(nil), 100, nil)
		if i > 0 { // keep the first one in use
			c.claim(sectionKey{number: 0})
		}
	}
	if c.used > c.limit || len(c.slots) != 10 {
		t.Errorf("%d bytes in %d entries, limit %d", c.used, len(c.slots), c.limit)
	}
	if _, mine := c.claim(sectionKey{number: 0}); mine {
		t.Error("the entry in use is gone")
	}
}
