package main

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/repo"
	"varve/layers"
)

// A flatLayer is an image in memory without holes.
type flatLayer []byte

func (f flatLayer) Size() int64 { return int64(len(f)) }

func (f flatLayer) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f).ReadAt(p, off)
}

func (f flatLayer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		if e := (layers.Extent{Len: int64(len(f)), Kind: layers.Data}).Clip(off, n); e.Len > 0 {
			yield(e, nil)
		}
	}
}

// A farStore is a store in memory. It counts requests, and can be a while away,
// or away altogether.
type farStore struct {
	objecttest.Hook
	mu   sync.Mutex
	seen []string
	trip time.Duration // of each request
	err  error         // of each request
}

var errAway = errors.New("the store is away")

// newFarStore has an open repository.
func newFarStore(t *testing.T) (*farStore, *repo.Repo) {
	t.Helper()
	s := new(farStore)
	s.Store = object.NewMem()
	s.Before = func(op, name string) error {
		s.mu.Lock()
		s.seen = append(s.seen, op+" "+name)
		trip, err := s.trip, s.err
		s.mu.Unlock()
		time.Sleep(trip)
		return err
	}
	r, err := repo.Init(t.Context(), s, repo.Key{}, repo.Params{NoEncryption: true})
	check(t, err)
	t.Cleanup(func() { r.Close() })
	return s, r
}

// set says how requests go from now on, and forgets those that were seen.
func (s *farStore) set(trip time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trip, s.err, s.seen = trip, err, nil
}

func (s *farStore) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// backup makes a full backup of a small volume.
func backup(t *testing.T, r *repo.Repo, name string) layers.ID {
	t.Helper()
	id := layers.NewID()
	_, err := r.Create(t.Context(), repo.Job{
		ID: id, Volume: layers.NewID(), VolumeName: "v", Name: name, Source: flatLayer(bytes.Repeat([]byte(name), 64<<10)),
	})
	check(t, err)
	return id
}

// Of many backups each root is read once, eight at a time; later listings are
// one request, and none for half a minute.
func TestRepoSourceReadsRootsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, trip = 400, 100 * time.Millisecond
		s, r := newFarStore(t)
		for i := range many {
			backup(t, r, fmt.Sprint("b", i))
		}
		s.set(trip, nil)
		source := newRepoSource(t.Context(), r, slog.New(slog.DiscardHandler))
		look := func(want, requests int, most time.Duration) {
			t.Helper()
			began := time.Now()
			images, err := source.List(t.Context())
			if err != nil || len(images) != want {
				t.Fatalf("%d images, %v; want %d", len(images), err, want)
			}
			if seen := s.take(); len(seen) != requests || time.Since(began) > most {
				t.Errorf("a look takes %d requests and %v, want %d and at most %v", len(seen), time.Since(began), requests, most)
			}
		}
		look(many, many+1, (1+many/8)*trip)
		look(many, 0, 0)
		time.Sleep(listFor)
		s.set(0, nil)
		backup(t, r, "new")
		s.set(trip, nil)
		look(many+1, 2, 2*trip) // names, then one root
	})
}

// While the target is away the mount shows what was there, and nobody waits
// for it; the log says so once. What is new is there when the target is.
func TestRepoSourceWithItsTargetAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newFarStore(t)
		backup(t, r, "one")
		log := new(bytes.Buffer)
		source := newRepoSource(t.Context(), r, slog.New(slog.NewTextHandler(log, nil)))

		s.set(time.Second, errAway)
		if _, err := source.List(t.Context()); !errors.Is(err, errAway) {
			t.Errorf("the first look, with the target away: %v", err)
		}
		s.set(0, nil)
		time.Sleep(listAgain)
		if images, err := source.List(t.Context()); len(images) != 1 || err != nil {
			t.Fatalf("the target is back: %v, %v", images, err)
		}

		s.set(10*time.Minute, errAway)
		for range 10 {
			time.Sleep(listFor)
			began := time.Now()
			images, err := source.List(t.Context())
			if len(images) != 1 || err != nil || time.Since(began) > listPatience {
				t.Errorf("a look after %v: %v, %v; want the image that was there", time.Since(began), images, err)
			}
		}
		s.set(0, nil)
		time.Sleep(15 * time.Minute) // what hangs has ended
		source.List(t.Context())     // asks
		time.Sleep(time.Minute)
		backup(t, r, "two")
		source.List(t.Context())
		time.Sleep(listFor)
		if images, err := source.List(t.Context()); len(images) != 2 || err != nil {
			t.Errorf("the target has been back for a minute: %v, %v; want both backups", images, err)
		}
		if n := strings.Count(log.String(), "was there before is shown"); n != 1 {
			t.Errorf("the log tells %d times that the target is away:\n%s", n, log)
		}
	})
}
