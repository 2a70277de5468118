package repo

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"varve/layers"
)

// A read with the store away is its error, of leaves and of frames, and not
// kept: the next one works when the store is back.
func TestReadsComeBack(t *testing.T) {
	s := newSample(t, true)
	away := errors.New("the store is away")
	var of atomic.Value // what cannot be read
	of.Store("nothing")
	c := countRequests(storeOf(t, s.objects))
	c.Before = func(_, name string) error {
		if strings.HasPrefix(name, of.Load().(string)) {
			return away
		}
		return nil
	}
	r, err := Open(t.Context(), c, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := make([]byte, layers.BlockSize)
	for _, prefix := range []string{"", "p/"} { // all of it; what packs hold
		of.Store(prefix)
		for range 2 {
			if _, err := l.ReadAt(p, 0); !errors.Is(err, away) {
				t.Errorf("with %q away: %v", prefix, err)
			}
		}
	}
	of.Store("nothing")
	if _, err := l.ReadAt(p, 0); err != nil || !bytes.Equal(p, s.image[:len(p)]) {
		t.Errorf("with the store back: %v, or other bytes", err)
	}
}

// What an open repository keeps of what was read is bounded, whatever is read.
func TestCacheOfReadsIsBounded(t *testing.T) {
	s := newSample(t, true)
	r, err := Open(t.Context(), storeOf(t, s.objects), Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.cache.limit = 512 << 10
	l, err := r.Layer(t.Context(), s.last)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := make([]byte, layers.BlockSize)
	most := int64(0)
	for range 2 {
		for off := int64(0); off+int64(len(p)) <= l.Size(); off += 31 * layers.BlockSize {
			if _, err := l.ReadAt(p, off); err != nil || !bytes.Equal(p, s.image[off:][:len(p)]) {
				t.Fatalf("read at %d: %v, or other bytes", off, err)
			}
			r.cache.mu.Lock()
			used, sum := r.cache.used, int64(0)
			for e := r.cache.order.Front(); e != nil; e = e.Next() {
				sum += e.Value.(*slotEntry).size
			}
			r.cache.mu.Unlock()
			if used != sum || used > r.cache.limit {
				t.Fatalf("at %d the cache has %d bytes and counts %d, of %d", off, sum, used, r.cache.limit)
			}
			most = max(most, used)
		}
	}
	if most < r.cache.limit/2 {
		t.Errorf("at most %d bytes were kept: the test tests nothing", most)
	}
}
