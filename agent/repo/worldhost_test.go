package repo

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/agent/object"
)

const (
	worldLag = sessionAfter - time.Minute // of listings, at most
)

var errDead = errors.New("the host is dead")

// pruning marks the requests of a pruning run.
type pruning struct{}

// A host is one life of a machine, between two crashes.
type host struct {
	world *world
	rnd   *rand.Rand // under mu
	mu    sync.Mutex
	dead  bool
	calm  bool // never crashes and never waits
}

func (w *world) newHost(seed uint64) *host {
	return &host{world: w, rnd: rand.New(rand.NewPCG(seed, 7))}
}

// chance is true once in n.
func (h *host) chance(n int) bool { return h.below(int64(n)) == 0 }

func (h *host) below(n int64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rnd.Int64N(n)
}

func (h *host) hours(n int) time.Duration {
	return time.Duration(h.below(int64(n) * int64(time.Hour)))
}

// request is the way of a request to the store. A machine may stand still
// before it, for days too; the Put of a root alone is not under way for longer
// than the half of a grace, which its writer would notice: see withdraw.
func (h *host) request(ctx context.Context, op, name string) error {
	if h.calm {
		return nil
	}
	if h.isDead() {
		return errDead
	}
	time.Sleep(time.Duration(h.below(int64(2 * time.Second))))
	often := h.world.weather.pause
	if ctx.Value(pruning{}) != nil {
		often = h.world.weather.stop
	}
	if h.chance(often) {
		pause := h.hours([]int{1, 3, 14, 80}[h.below(4)])
		if op == "put" && strings.Contains(name, "/b/") {
			pause = min(pause, sessionGrace-2*time.Hour)
		}
		time.Sleep(pause)
	}
	if h.chance(h.world.weather.crash) {
		h.die()
		return errDead
	}
	h.world.count(&h.world.requests)
	return ctx.Err()
}

// answered is the way back: the host may die before it hears.
func (h *host) answered() error {
	if !h.calm && h.chance(2*h.world.weather.crash) {
		h.die()
		return errDead
	}
	return nil
}

func (h *host) die() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead = true
}

func (h *host) isDead() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead
}

func (h *host) Put(ctx context.Context, name string, b []byte) error {
	if err := h.request(ctx, "put", name); err != nil {
		return err
	}
	h.world.put(name, b)
	return h.answered()
}

func (w *world) put(name string, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close(name)
	w.past[name] = append(w.past[name], span2{from: time.Now(), size: int64(len(b))})
	if err := w.mem.Put(context.Background(), name, b); err != nil {
		panic(err)
	}
}

// close ends the time in which an object was there. The caller holds mu.
func (w *world) close(name string) {
	if s := w.past[name]; len(s) > 0 && s[len(s)-1].until.IsZero() {
		s[len(s)-1].until = time.Now()
	}
}

func (h *host) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if h.world.flaw == trusting && len(p) == 1 && !h.calm { // what a footing asks
		if strings.Contains(name, "/d/") {
			return 0, fs.ErrNotExist
		}
		return 1, nil
	}
	if err := h.request(ctx, "get", name); err != nil {
		return 0, err
	}
	return h.world.mem.Get(context.Background(), name, p, off)
}

func (h *host) Delete(ctx context.Context, names ...string) error {
	for i, name := range names {
		if i%3 == 0 { // a batch is not atomic
			if err := h.request(ctx, "delete", name); err != nil {
				return err
			}
		}
		h.world.mu.Lock()
		h.world.close(name)
		h.world.mem.Delete(context.Background(), name)
		h.world.mu.Unlock()
	}
	return h.answered()
}

func (h *host) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		if err := h.request(ctx, "list", prefix); err != nil {
			yield(object.Info{}, err)
			return
		}
		for _, info := range h.listing(prefix) {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// listing shows each name as it was some time ago.
func (h *host) listing(prefix string) []object.Info {
	w := h.world
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []object.Info
	for _, name := range slices.Sorted(maps.Keys(w.past)) {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		at := time.Now()
		if !h.calm && h.chance(2) {
			at = at.Add(-time.Duration(h.below(int64(worldLag))))
		}
		for _, s := range w.past[name] {
			if !s.from.After(at) && (s.until.IsZero() || s.until.After(at)) {
				found = append(found, object.Info{Name: name, Size: s.size, Modified: s.from})
			}
		}
	}
	return found
}
