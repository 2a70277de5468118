package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// The simulation of C5: hosts that back up, resume, delete, prune and verify,
// that stand still and crash at any request, and whose clocks lie by hours,
// over a store whose listings lag by up to an hour, for each name by another
// time. Whatever happens, a backup that has a root and no tombstone reads as
// what was backed up; and when all is quiet, garbage goes within two graces.
//
// A seed steers what happens. Goroutines of one backup may still come to the
// store in another order when it is run again.

const (
	worldLag  = sessionAfter - time.Minute // of listings, at most
	worldDays = 12
)

var errDead = errors.New("the host is dead")

// A flaw is a rule of pruning that the simulated hosts break. The world must
// find each.
type flaw string

const (
	sound          flaw = ""
	hasty          flaw = "what is condemned goes in the next run" // harmless by itself: see design.md
	blindToRunning flaw = "hasty, and sessions are not looked at"
	rootsFirst     flaw = "hasty, and roots are listed before sessions"
	trusting       flaw = "hasty, and writers do not ask for their footing by name"
	greedy         flaw = "hasty, and resumed backups do not read condemned lists"
)

func (f flaw) hurries() bool { return f != sound }

// A weather says how often something happens: once in so many requests, or
// tries.
type weather struct {
	pause  int // of a writer
	stop   int // of a pruning host
	crash  int
	resume int
	idle   int // hours between two acts, at most
}

var (
	fair  = weather{pause: 40, stop: 40, crash: 150, resume: 2, idle: 16}
	rough = weather{pause: 12, stop: 12, crash: 60, resume: 1, idle: 16}
	// Backups that take days, beside hosts that do all the time what they may.
	busy = weather{pause: 4, stop: 16, crash: 250, resume: 1, idle: 4}
)

// pruning marks the requests of a pruning run.
type pruning struct{}

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

	backups, resumed, deleted, prunes, crashes, refused int
}

// span2 is when an object was there; until is zero if it is.
type span2 struct {
	from, until time.Time
	size        int64
}

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

// A flawed store is what a host with a flaw prunes with.
type flawed struct {
	*host
	own   string // the session of the run
	roots []object.Info
}

func (f *flawed) Put(ctx context.Context, name string, b []byte) error {
	if strings.HasPrefix(name, sessionRoot) {
		f.own = name
	}
	return f.host.Put(ctx, name, b)
}

func (f *flawed) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		switch {
		case prefix == sessionRoot && f.world.flaw == rootsFirst:
			if err := f.request(ctx, "list", volumesRoot); err != nil {
				yield(object.Info{}, err)
				return
			}
			f.roots = f.listing(volumesRoot)
		case prefix == volumesRoot && f.world.flaw == rootsFirst:
			for _, info := range f.roots {
				if !yield(info, nil) {
					return
				}
			}
			return
		}
		for info, err := range f.host.List(ctx, prefix) {
			if prefix == sessionRoot && f.world.flaw == blindToRunning && info.Name != f.own {
				continue
			}
			if prefix == listRoot && f.world.flaw.hurries() {
				info.Modified = info.Modified.Add(-PruneGrace)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// A greedy store hides condemned lists from writers.
type greedyStore struct{ *host }

func (g greedyStore) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	if prefix == listRoot {
		return func(func(object.Info, error) bool) {}
	}
	return g.host.List(ctx, prefix)
}

func (w *world) open(s object.Store) (*Repo, error) {
	r, err := Open(context.Background(), s, Key{})
	if err != nil {
		return nil, err
	}
	r.packTarget = 24 << 10
	return r, nil
}

// live lets a machine live through the days of the world.
func (w *world) live(seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	var cut *Job // a backup that a crash cut off
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
			for err == nil && !h.isDead() && time.Now().Before(w.end) {
				cut = w.act(h, r, pruner, cut)
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
func (w *world) act(h *host, r, pruner *Repo, cut *Job) *Job {
	ctx := context.Background()
	if cut != nil && h.chance(w.weather.resume) {
		w.count(&w.resumed)
		return w.backup(h, r, *cut)
	}
	switch what := h.below(20); {
	case what < 9:
		if cut != nil && !h.chance(w.weather.resume) {
			cut = nil
		}
		if next := w.backup(h, r, w.job(h)); next != nil {
			cut = next
		}
	case what < 12:
		if id := w.some(h); !id.IsZero() && r.Delete(ctx, id) == nil {
			w.count(&w.deleted)
		}
	case what < 18:
		w.count(&w.prunes)
		if _, err := pruner.Prune(context.WithValue(ctx, pruning{}, true), PruneOptions{}); err != nil && !errors.Is(err, errDead) {
			w.fail(fmt.Errorf("prune: %w", err))
		}
	default:
		id := w.some(h)
		if _, err := r.Verify(ctx, id, VerifyOptions{Level: Deep}); errors.Is(err, ErrCorrupt) && !w.isDeleted(id) {
			w.fail(fmt.Errorf("verify: %w", err))
		}
	}
	return cut
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
func (w *world) job(h *host) Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := newVolume(16 * layers.BlockSize)
	v.id = w.volumes[h.below(int64(len(w.volumes)))]
	j := Job{ID: layers.NewID(), Volume: v.id}
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
	if errors.Is(err, ErrParentGone) && point.Sessions == 0 && j.Resume.Sessions == 0 {
		w.count(&w.refused)
		j.Parent, j.Changes = layers.ID{}, nil
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

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost == nil {
		w.lost = err
	}
}

func (w *world) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// check reads every backup that is there, with a host that sees all.
func (w *world) check() {
	h := w.newHost(1)
	h.calm = true
	r, err := w.open(h)
	if err != nil {
		w.fail(err)
		return
	}
	defer r.Close()
	l, err := r.list(context.Background(), volumesRoot)
	if err != nil {
		w.fail(err)
		return
	}
	for _, root := range l.roots {
		if l.deleted[root.name.backup] {
			continue
		}
		got, err := readWhole(r, root.name.backup)
		if err != nil {
			w.fail(err)
		} else if at := differ(got, w.images[root.name.backup]); at >= 0 {
			w.fail(fmt.Errorf("backup %s differs at %d", root.name.backup, at))
		}
	}
}

func readWhole(r *Repo, id layers.ID) ([]byte, error) {
	l, err := r.Layer(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
}

// settle prunes for two graces, and returns what is left that nothing needs.
func (w *world) settle() (left []string) {
	h := w.newHost(2)
	h.calm = true
	r, err := w.open(h)
	if err != nil {
		w.fail(err)
		return nil
	}
	defer r.Close()
	for began := time.Now(); time.Since(began) <= 2*PruneGrace; time.Sleep(time.Hour) {
		report, err := r.Prune(context.Background(), PruneOptions{})
		if err = errors.Join(append(report.Kept, err)...); err != nil {
			w.fail(fmt.Errorf("prune: %w", err))
			return nil
		}
	}
	l, err := r.list(context.Background(), volumesRoot)
	if err != nil {
		w.fail(err)
		return nil
	}
	needed, live := make(map[objectID]bool), make(map[sessionID]bool)
	for _, root := range l.roots {
		live[sessionOf(root.name.backup)] = true
		if err := w.reach(r, root, needed); err != nil {
			w.fail(err)
		}
	}
	for name := range w.past {
		there, _ := r.exists(context.Background(), name)
		if !there {
			continue
		}
		if _, id, ok := parsePack(name); ok && !needed[id] && !live[id.session()] ||
			strings.HasPrefix(name, sessionRoot) || strings.Contains(name, "/d/") || strings.HasPrefix(name, listRoot) {
			left = append(left, name)
		}
	}
	return left
}

// reach adds the packs that a root needs, read in another way than pruning
// does: through what a reader would fetch, and the packs of its leaves.
func (w *world) reach(r *Repo, listed listedRoot, needed map[objectID]bool) error {
	root, err := r.readRoot(context.Background(), listed)
	if err != nil {
		return err
	}
	for _, row := range root.spans.rows {
		parts := make([]*leaf, len(row.leaves))
		if err := r.readLeaves(context.Background(), root.name.volume, row, parts); err != nil {
			return err
		}
		for i, part := range parts {
			needed[row.leaves[i].pack.id] = true
			for _, pack := range part.packs {
				needed[pack.id] = true
			}
		}
	}
	if root.inventory != nil {
		needed[root.inventory.pack.id] = true
	}
	return nil
}

// The world must be able to tell that a rule is missing: it breaks each. That
// takes up to some hundred seeds, so it is part of make soak alone.
func TestHostsMissEveryRule(t *testing.T) {
	const most = 2000 // seeds
	if os.Getenv("SEEDS") == "" {
		return
	}
	flaws := []flaw{trusting, blindToRunning, greedy, rootsFirst}
	for _, f := range flaws {
		t.Run(strings.ReplaceAll(string(f), " ", "-"), func(t *testing.T) {
			first := uint64(time.Now().UnixNano()) >> 10
			for i := range uint64(most) {
				if w := simulate(t, f, busy, first+i); w.lost != nil {
					t.Logf("seed %d, the %d. one: %v", first+i, i+1, w.lost)
					return
				}
			}
			t.Errorf("%d seeds did not find it", most)
		})
	}
}

// simulate runs a world. It returns the first loss.
func simulate(t *testing.T, f flaw, sky weather, seed uint64) (w *world) {
	synctest.Test(t, func(t *testing.T) {
		w = &world{
			flaw: f, weather: sky, mem: object.NewMem(), past: make(map[string][]span2),
			images: make(map[layers.ID][]byte), made: make(map[layers.ID][]layers.ID),
			volumes: []layers.ID{layers.NewID(), layers.NewID()},
			end:     time.Now().Add(worldDays * 24 * time.Hour),
		}
		init := w.newHost(0)
		init.calm = true
		r, err := Init(t.Context(), init, Key{}, Params{NoEncryption: true})
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		var hosts sync.WaitGroup
		for i := range uint64(3) {
			hosts.Go(func() { w.live(seed*16 + i + 1) })
		}
		for time.Now().Before(w.end) && w.failed() == nil {
			time.Sleep(12 * time.Hour)
			w.check()
		}
		hosts.Wait()
		w.check()
		if w.failed() != nil {
			return
		}
		if left := w.settle(); len(left) > 0 {
			w.fail(fmt.Errorf("two graces after the last change these are left: %q", left))
		}
		w.check()
	})
	return w
}

func TestHosts(t *testing.T) {
	// C5, B9, B17, B19.
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	if n, err := strconv.ParseUint(os.Getenv("SEEDS"), 10, 32); err == nil {
		seeds = n
	}
	first := uint64(time.Now().UnixNano()) >> 10
	if *seedFlag != 0 {
		first, seeds = *seedFlag, 1
	}
	var sum world
	for i := range seeds {
		f := sound
		if (first+i)%2 == 1 {
			f = hasty // the argument of design.md says that one look would do
		}
		sky := []weather{fair, rough, busy}[(first+i)/2%3]
		w := simulate(t, f, sky, first+i)
		if w.lost != nil {
			t.Errorf("replay with -seed %d (%s): %v", first+i, f, w.lost)
		}
		sum.backups += w.backups
		sum.resumed += w.resumed
		sum.deleted += w.deleted
		sum.prunes += w.prunes
		sum.crashes += w.crashes
		sum.refused += w.refused
		sum.requests += w.requests
	}
	t.Logf("seeds %d to %d: %d requests, %d backups, %d resumed, %d without the parent they wanted, %d deletions, %d prunes, %d crashes",
		first, first+seeds-1, sum.requests, sum.backups, sum.resumed, sum.refused, sum.deleted, sum.prunes, sum.crashes)
}
