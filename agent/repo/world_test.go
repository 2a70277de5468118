package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// A weather says how often something happens: once in so many requests, or
// tries.
type weather struct {
	pause  int // of a writer
	stop   int // of a pruning host
	repack int // pruning hosts that copy what is needed of old packs, too
	crash  int
	resume int
	idle   int // hours between two acts, at most
}

var (
	fair  = weather{pause: 40, stop: 40, repack: 2, crash: 150, resume: 2, idle: 16}
	rough = weather{pause: 12, stop: 12, repack: 1, crash: 60, resume: 1, idle: 16}
	// Backups that take days, beside hosts that do all the time what they may.
	busy = weather{pause: 4, stop: 16, repack: 1, crash: 250, resume: 1, idle: 4}
)

// A world is a store and all who use it.
type world struct {
	flaw    flaw
	weather weather

	mu       sync.Mutex
	mem      *object.Mem
	past     map[string][]span2 // of each name, in order
	images   map[layers.ID][]byte
	volumes  []layers.ID
	made     map[layers.ID][]layers.ID // backups of a volume that Create said are there
	lost     error                     // the first loss
	requests int
	end      time.Time

	backups, resumed, deleted, prunes, repacked, crashes, refused, takeovers int
}

// span2 is when an object was there; until is zero if it is.
type span2 struct {
	from, until time.Time
	size        int64
}

func (w *world) open(s object.Store) (*Repo, error) {
	r, err := Open(context.Background(), s, Key{})
	if err != nil {
		return nil, err
	}
	r.packTarget, r.mergePacks = 24<<10, 3
	return r, nil
}

// live lets a machine live through the days of the world.
func (w *world) live(seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	var cut *Job                        // a backup that a crash cut off
	claims := make(map[layers.ID]Claim) // of this machine, by volume
	for life := uint64(0); time.Now().Before(w.end); life++ {
		h := w.newHost(seed<<8 + life)
		var store object.Store = h
		if w.flaw == greedy {
			store = greedyStore{h}
		}
		r, err := w.open(store)
		if err == nil {
			lie := time.Duration(rnd.Int64N(int64(30*time.Hour))) - 15*time.Hour
			r.now = func() time.Time { return time.Now().Add(lie) }
			pruner, err := w.open(&flawed{host: h})
			if err == nil {
				pruner.now = r.now
			}
			for err == nil && !h.isDead() && time.Now().Before(w.end) {
				cut = w.act(h, r, pruner, cut, claims)
				time.Sleep(h.hours(w.weather.idle))
			}
			r.Close()
			if pruner != nil {
				pruner.Close()
			}
		}
		w.count(&w.crashes)
		time.Sleep(time.Duration(rnd.Int64N(int64(40 * time.Hour))))
	}
}

func (w *world) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

// act does one thing. It returns the backup that was cut off, if there is one.
func (w *world) act(h *host, r, pruner *Repo, cut *Job, claims map[layers.ID]Claim) *Job {
	ctx := context.Background()
	if cut != nil && h.chance(w.weather.resume) {
		w.count(&w.resumed)
		return w.backup(h, r, *cut)
	}
	switch what := h.below(22); {
	case what < 9:
		if cut != nil && !h.chance(w.weather.resume) {
			cut = nil
		}
		if next := w.backup(h, r, w.job(h, claims)); next != nil {
			cut = next
		}
	case what < 12:
		if id := w.some(h); !id.IsZero() && r.Delete(ctx, id) == nil {
			w.count(&w.deleted)
		}
	case what < 18:
		w.count(&w.prunes)
		o := PruneOptions{}
		if h.chance(w.weather.repack) {
			o.RepackBelow = 95
		}
		report, err := pruner.Prune(context.WithValue(ctx, pruning{}, true), o)
		if err != nil && !errors.Is(err, errDead) {
			w.fail(fmt.Errorf("prune: %w", err))
		}
		if report.Rewritten.Objects > 0 {
			w.count(&w.repacked)
		}
	case what < 20:
		w.takeOver(h, r, claims)
	default:
		id := w.some(h)
		if _, err := r.Verify(ctx, id, VerifyOptions{Level: Deep}); errors.Is(err, ErrCorrupt) && !w.isDeleted(id) {
			w.fail(fmt.Errorf("verify: %w", err))
		}
	}
	return cut
}

// takeOver makes this machine the writer of some volume from now on. The others
// may go on with theirs, which are forks then.
func (w *world) takeOver(h *host, r *Repo, claims map[layers.ID]Claim) {
	id := w.some(h)
	if id.IsZero() {
		return
	}
	c, err := r.TakeOver(context.Background(), layers.NewID(), id, "")
	switch {
	case err == nil:
		claims[c.Volume] = c
		w.count(&w.takeovers)
	case !errors.Is(err, errDead) && !errors.Is(err, fs.ErrNotExist):
		w.fail(fmt.Errorf("take over: %w", err))
	}
}

// some returns a backup of any host that may be there.
func (w *world) some(h *host) layers.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	volume := w.volumes[h.below(int64(len(w.volumes)))]
	made := w.made[volume]
	if len(made) == 0 {
		return layers.ID{}
	}
	// Rather one of the newest: it may be somebody's parent right now.
	return made[len(made)-1-int(min(h.below(4), h.below(4), int64(len(made)-1)))]
}

func (w *world) isDeleted(id layers.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, volume := range w.volumes {
		if len(w.past[tombstoneName(volume, id)]) > 0 {
			return true
		}
	}
	return false
}

// job describes a backup of some volume: a full one, or an increment on a
// backup that this host may not know, or that may be deleted.
func (w *world) job(h *host, claims map[layers.ID]Claim) Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := newVolume(16 * layers.BlockSize)
	v.id = w.volumes[h.below(int64(len(w.volumes)))]
	j := Job{ID: layers.NewID(), Volume: v.id, Claim: claims[v.id]}
	if made := w.made[v.id]; len(made) > 0 && !h.chance(8) {
		j.Parent = made[len(made)-1-int(min(h.below(3), int64(len(made)-1)))]
		copy(v.bytes, w.images[j.Parent])
	}
	for range h.below(5) {
		b := h.below(16)
		p := make([]byte, layers.BlockSize)
		for i := range p {
			p[i] = byte(h.below(256))
		}
		v.write(b*layers.BlockSize, p)
	}
	if h.chance(4) {
		v.zero(h.below(8)*layers.BlockSize, 3*layers.BlockSize)
	}
	j.Source = v.source()
	if !j.Parent.IsZero() {
		j.Changes = v.changes()
	}
	w.images[j.ID] = v.bytes
	return j
}

// backup makes a backup. It returns it if a crash cut it off.
func (w *world) backup(h *host, r *Repo, j Job) *Job {
	var point Checkpoint
	j.Checkpoint = func(c Checkpoint) error {
		if h.isDead() {
			return errDead
		}
		point = c
		return nil
	}
	_, err := r.Create(context.Background(), j)
	if errors.Is(err, ErrParentGone) && !h.isDead() {
		w.count(&w.refused)
		j.Parent, j.Changes = layers.ID{}, nil
		if len(point.Tries) > 0 {
			j.Resume = point
		}
		_, err = r.Create(context.Background(), j)
	}
	switch {
	case err == nil:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.backups++
		w.made[j.Volume] = append(w.made[j.Volume], j.ID)
	case errors.Is(err, errDead):
		if len(point.Tries) > 0 {
			j.Resume = point
		}
		return &j
	case !errors.Is(err, ErrParentGone) && !errors.Is(err, ErrStale) && !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "was under way for longer"):
		w.fail(fmt.Errorf("backup: %w", err))
	}
	return nil
}
