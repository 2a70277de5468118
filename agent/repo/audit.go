package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"varve/layers"
)

// AuditOptions choose what Audit reads.
type AuditOptions struct {
	Level   Level
	Samples int       // frames that Sample reads; 0: defaultSamples; at most MaxSamples
	Rate    int64     // bytes a second that are read at most; 0: no limit
	Since   time.Time // Deep leaves out packs that the ledger has as sound since then; zero: none
	Ledger  Ledger

	// Repair writes what is damaged anew where what it held can be found, in
	// other backups or in what Heal offers, and makes maps again from what packs
	// say of themselves. Roots it does not repair. Heal may be nil.
	Repair bool
	Heal   func(ctx context.Context, volume layers.ID) (Source, error)

	// Progress is told the stored bytes that were dealt with and those to deal
	// with, an estimate at first, if it is not nil; never by two goroutines at
	// once.
	Progress func(done, total int64)
}

// A Ledger remembers when each pack was last read whole and found sound, by the
// name of its object. Any of its functions may be nil; none is called by two
// goroutines at once. Their errors end the audit.
type Ledger struct {
	Read func(each func(pack string, at time.Time)) error // what is remembered, in any order
	Keep func(packs []string, at time.Time) error
	Drop func(packs []string) error // they are damaged, or needed no more
}

// defaultSamples find, nineteen times out of twenty, that a thousandth of all
// frames is damaged.
const defaultSamples = 3000

// MaxSamples is how many frames Sample draws at most. Who wants more wants Deep.
const MaxSamples = 1 << 20

// Touched is a backup that damage concerns.
type Touched struct {
	Backup     layers.ID
	Volume     layers.ID
	Name       string // empty if its root cannot be read
	VolumeName string
	Ranges     []Range // that cannot be restored, ascending, the first maxRanges
	Bytes      int64   // of all such ranges; 0 with a Range of its own: the whole backup, its size is not known
}

// A Finding is damage in one place.
type Finding struct {
	Object  string
	Offset  int64     // bytes from the start of the object
	Err     error     // a DamageError
	Backups []Touched // whose data is lost by it; none: nothing but what the place itself is for

	// Repaired: what was there is written elsewhere now, and found there.
	Repaired bool
}

// An AuditReport says what was read and found.
type AuditReport struct {
	Backups  int64
	Packs    int64     // objects with data or leaves that backups need
	Leaves   int64     // read
	Frames   int64     // read
	Bytes    int64     // read of packs
	Read     int64     // packs read whole
	Skipped  int64     // packs that were left out since they were read not long ago
	Known    int64     // packs of which it is known when they were read whole
	Oldest   time.Time // of the packs that backups need, when the one was read whole that was read longest ago; zero: never
	Healed   int64     // frames that were written anew
	Rebuilt  int64     // parts of maps that were made again
	Findings []Finding // at most maxDamage, those that were not repaired first
	Count    int64     // of all findings that were not repaired
	Damaged  []Touched // the backups that something of is lost, and how much by all findings together
}

const (
	maxRanges = 16
	// maxPack is more than a pack can have.
	maxPack = packTarget + 4<<20
	// auditReads is how many packs are read at a time; each takes its size in
	// memory.
	auditReads = 2
)

// Audit checks everything that backups which are not deleted need, each object
// once however many backups share it. If anything is damaged the error wraps
// ErrCorrupt, and the report names each place and the backups that it concerns.
// Other errors mean that the store did not answer, or that ctx ended; the report
// then says what was found before.
//
//   - Presence reads the roots, the keys and the inventories, and compares the
//     sizes in a listing with them.
//   - Map also reads all leaves, each once, and checks that what they name lies
//     in its pack and nothing overlaps.
//   - Sample also reads frames drawn at random, more often from packs that were
//     not read whole for long.
//   - Deep instead reads each pack whole, the one first that was not for longest,
//     and checks each section in it.
//
// It takes about 150 bytes of memory for each pack of the repository, and the
// distinct leaves of one volume.
func (r *Repo) Audit(ctx context.Context, o AuditOptions) (AuditReport, error) {
	if o.Samples <= 0 {
		o.Samples = defaultSamples
	}
	o.Samples = min(o.Samples, MaxSamples)
	if o.Rate > 0 {
		r = r.over(&pacedStore{Store: r.store, pace: pace{rate: o.Rate}})
	}
	a := &audit{
		repo: r, options: o, index: make(map[packID]int32), keyIndex: make(map[keyRef]int32),
		places: make(map[damagePlace]int), whole: make(map[string]int), flagged: make(map[packID]bool), account: make(map[packID]bool), repaired: make(map[damagePlace]bool), lost: make(map[layers.ID]*lost),
	}
	err := a.run(ctx)
	a.report.Packs = int64(len(a.packs))
	if err == nil && a.report.Count > 0 {
		err = fmt.Errorf("%d places, the first: %w", a.report.Count, a.report.Findings[0].Err)
	}
	if err != nil {
		return a.report, fmt.Errorf("verify repository %s: %w", r.ID(), err)
	}
	return a.report, nil
}

// A packID names a pack's object.
type packID struct {
	where place
	id    objectID
}

func (p packID) name() string { return packName(p.where, p.id) }

func (p packID) compare(q packID) int {
	return cmp.Or(cmp.Compare(p.where, q.where), slices.Compare(p.id[:], q.id[:]))
}

// An auditPack is a pack that some backup needs.
type auditPack struct {
	packID
	key    int32 // index in audit.keys
	volume int32 // index in audit.volumes of who needs it; severalVolumes
	size   int64 // bytes; 0: nothing that could be read says
	least  int64 // bytes that it has at least, as leaves name frames up to there
	sound  int64 // milliseconds since 1970 when it was last read whole; 0: never
}

const severalVolumes = -1

type audit struct {
	repo    *Repo
	options AuditOptions

	listed   []listedPack // all packs in the store, ascending; kept for a repair
	volumes  [][]listedRoot
	keys     []keyRef
	keyIndex map[keyRef]int32
	packs    []auditPack
	index    map[packID]int32 // in packs

	mu       sync.Mutex // all below
	report   AuditReport
	places   map[damagePlace]int         // index in report.Findings; tooMany
	whole    map[string]int              // by object, of one that is missing or cut
	account  map[packID]bool             // those that are missing, cut, or say wrong things of themselves
	needed   map[sectionKey]*neededFrame // of flagged packs, at most healMax
	leaves   map[sectionKey]*lostLeaf    // that cannot be read, or stand in packs of account
	lists    map[sectionKey]*lostList    // the same of inventories
	repaired map[damagePlace]bool
	flagged  map[packID]bool     // packs with damage
	lost     map[layers.ID]*lost // by backup
	done     int64
	total    int64
}

// A listedPack is a pack as a listing has it.
type listedPack struct {
	packID
	size int64
}

func (a *audit) run(ctx context.Context) error {
	if err := a.list(ctx); err != nil {
		return err
	}
	for i, roots := range a.volumes {
		if err := a.checkVolume(ctx, int32(i), roots); err != nil {
			return err
		}
	}
	if err := a.checkSizes(ctx); err != nil {
		return err
	}
	if err := a.readLedger(); err != nil {
		return err
	}
	var err error
	switch a.options.Level {
	case Sample:
		err = a.sample(ctx)
	case Deep:
		err = a.deep(ctx)
	}
	// What was found is told with what it means, also if the rest could not be
	// read.
	if a.report.Count > 0 && ctx.Err() == nil {
		err = errors.Join(err, a.trace(ctx))
		if err == nil && a.options.Repair {
			if err = a.healMap(ctx); err == nil {
				err = a.heal(ctx)
			}
			if err == nil && a.report.Healed > 0 {
				err = a.trace(ctx)
			}
		}
		a.settle()
	}
	return err
}

// list reads which roots, packs and keys there are.
func (a *audit) list(ctx context.Context) error {
	l, err := a.repo.list(ctx, volumesRoot)
	if err != nil {
		return err
	}
	for _, root := range l.roots {
		if l.deleted[root.name.backup] {
			continue
		}
		a.report.Backups++
		if n := len(a.volumes); n == 0 || a.volumes[n-1][0].name.volume != root.name.volume {
			a.volumes = append(a.volumes, nil)
		}
		last := &a.volumes[len(a.volumes)-1]
		*last = append(*last, root)
	}
	for _, prefix := range []string{"p/", "m/"} {
		for info, err := range a.repo.store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list packs: %w", err)
			}
			if id, ok := packOf(info.Name); ok {
				a.listed = append(a.listed, listedPack{id, info.Size})
			}
		}
	}
	slices.SortFunc(a.listed, func(x, y listedPack) int { return x.compare(y.packID) })
	return a.checkSmall(ctx)
}

// packOf reads the name of a pack.
func packOf(name string) (packID, bool) {
	where, id, ok := parsePack(name)
	return packID{where, id}, ok
}

// need remembers that a volume needs a pack.
func (a *audit) need(volume int32, id packID, key keyRef, size int64) *auditPack {
	k, ok := a.keyIndex[key]
	if !ok {
		k = int32(len(a.keys))
		a.keys, a.keyIndex[key] = append(a.keys, key), k
	}
	i, ok := a.index[id]
	if !ok {
		i = int32(len(a.packs))
		a.packs, a.index[id] = append(a.packs, auditPack{packID: id, key: k, volume: volume, size: size}), i
	}
	p := &a.packs[i]
	if p.volume != volume {
		p.volume = severalVolumes
	}
	if p.size == 0 {
		p.size = size
	}
	return p
}

// checkSizes compares all packs that are needed with the listing. As a listing
// may lag, what it has otherwise is asked for by name.
func (a *audit) checkSizes(ctx context.Context) error {
	for i := range a.packs {
		p := &a.packs[i]
		at, found := slices.BinarySearchFunc(a.listed, p.packID, func(l listedPack, id packID) int { return l.compare(id) })
		if found && a.listed[at].size > 0 && (p.size == 0 || p.size == a.listed[at].size) {
			p.size = a.listed[at].size
			if p.size < p.least {
				err := damaged(p.name(), p.size, fmt.Errorf("the object ends here, the map has frames up to offset %d", p.least))
				if err := a.noteWhole(p.packID, err); err != nil {
					return err
				}
			}
			continue
		}
		end := int64(0)
		if found {
			end = a.listed[at].size
		}
		if err := a.probe(ctx, p, end); err != nil {
			return err
		}
	}
	if !a.options.Repair {
		a.listed = nil
	}
	return nil
}

// probe asks a pack how long it is. end is where it ends by the listing.
func (a *audit) probe(ctx context.Context, p *auditPack, end int64) error {
	name := p.name()
	if p.size == 0 {
		front := make([]byte, headerSize)
		err := a.repo.readRange(ctx, name, front, 0)
		if err == nil {
			var h header
			if h, err = parseHeader(front); err != nil {
				err = damaged(name, 0, err)
			}
			p.size = h.total
		}
		return a.noteAccount(p.packID, err)
	}
	var last [2]byte
	n, err := a.repo.store.Get(ctx, name, last[:], p.size-1)
	switch {
	case err == io.EOF && n == 1:
		return nil
	case err == nil:
		err = damaged(name, p.size, fmt.Errorf("the object goes on, expected %d bytes", p.size))
	case err == io.EOF:
		err = damaged(name, end, fmt.Errorf("the object ends here, expected %d bytes", p.size))
	default:
		err = readError(name, p.size-1, n, 1, err)
	}
	return a.noteWhole(p.packID, err)
}

// readLedger learns when each pack was read last, and lets the ledger forget
// those that are needed no more.
func (a *audit) readLedger() error {
	l := a.options.Ledger
	if l.Read != nil {
		var gone []string
		err := l.Read(func(pack string, at time.Time) {
			id, ok := packOf(pack)
			if i, known := a.index[id]; ok && known {
				a.packs[i].sound = at.UnixMilli()
			} else {
				gone = append(gone, pack)
			}
		})
		if err == nil && a.options.Level >= Map && len(gone) > 0 && l.Drop != nil {
			err = l.Drop(gone)
		}
		if err != nil {
			return fmt.Errorf("remember what was read: %w", err)
		}
	}
	a.tellOldest()
	return nil
}

// tellOldest puts into the report when the pack was read that was read longest
// ago.
func (a *audit) tellOldest() {
	a.report.Oldest, a.report.Known = time.Time{}, 0
	for i := range a.packs {
		if a.packs[i].sound > 0 {
			a.report.Known++
		}
	}
	if len(a.packs) == 0 {
		return
	}
	oldest := slices.MinFunc(a.packs, func(p, q auditPack) int { return cmp.Compare(p.sound, q.sound) })
	if oldest.sound > 0 {
		a.report.Oldest = time.UnixMilli(oldest.sound).UTC()
	}
}

// advance reports n more bytes that were dealt with.
func (a *audit) advance(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done += n
	if a.options.Progress != nil {
		a.options.Progress(a.done, max(a.done, a.total))
	}
}
