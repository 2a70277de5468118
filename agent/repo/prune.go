package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"varve/layers"
)

// PruneGrace is how long pruning leaves what it has condemned. The safety of
// backups that run meanwhile rests on it: design.md, section 7, "Pruning".
const PruneGrace = 24 * time.Hour

// PruneOptions choose what Prune does.
type PruneOptions struct {
	// Grace is PruneGrace if it is 0. With a shorter one a backup that is made
	// on any host at the same time may lose data that it needs, unless it
	// takes less than half of it.
	Grace time.Duration

	DryRun bool // only report what would be done

	// RepackBelow is the share of a pack, in hundredths, that backups must need
	// of it, or what they need is copied into a new pack; small packs of a volume
	// are copied together. 0: nothing is copied.
	RepackBelow int

	// Progress is told the bytes of the packs whose fate is decided and of
	// those that may have to go, if it is not nil; never by two goroutines at
	// once. The total grows while packs are being listed.
	Progress func(done, total int64)
}

// An Amount is a number of objects and their bytes.
type Amount struct {
	Objects int64
	Bytes   int64
}

func (a *Amount) add(bytes int64) {
	a.Objects++
	a.Bytes += bytes
}

// A PruneReport says what Prune did, or with DryRun would do.
type PruneReport struct {
	Packs     Amount // that were there
	Freed     Amount // objects that were removed
	Condemned Amount // packs that nobody needs, and that go once the grace is over
	Young     Amount // packs that nobody needs, but that are younger than the grace

	Repacked  Amount // packs that were copied; they go later
	Rewritten Amount // packs that what was needed of them was copied to

	Backups int // deleted backups whose last traces were removed
	Waiting int // backups that were deleted within the grace

	// Retained is how many objects were to go and stay, because the store itself
	// retains them. They are not among Freed.
	Retained int64

	// Kept says why volumes were left alone, because something in them that
	// may need packs can't be read, and why objects were retained: at most
	// maxDamage.
	Kept []error
}

// Prune frees the space of what was deleted, and of what crashed backups left:
// packs that no backup needs are condemned first, and removed by a run that is
// a grace or more later, if nothing needs them then either. It may be stopped
// at any point and be run again, by any number of hosts at once, and beside
// backups, restores and deletions.
//
// What can't be read may need anything: its volume is left alone, and the
// report says so.
func (r *Repo) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	if o.Grace == 0 {
		o.Grace = PruneGrace
	}
	if o.Grace < 0 || o.RepackBelow < 0 || o.RepackBelow > 100 {
		return PruneReport{}, fmt.Errorf("prune: a grace of %v, repacking below %d %%", o.Grace, o.RepackBelow)
	}
	p := newPrune(r, o)
	if err := p.run(ctx); err != nil {
		return p.report, fmt.Errorf("prune: %w", err)
	}
	return p.report, nil
}

func newPrune(r *Repo, o PruneOptions) *prune {
	return &prune{
		repo: r, options: o, id: layers.NewID(), began: r.moment(), freed: make(map[objectID]bool),
		unclear: make(map[layers.ID]bool), sources: make(map[layers.ID]*sources),
	}
}

// A prune is one run.
type prune struct {
	repo    *Repo
	options PruneOptions
	id      layers.ID
	began   moment
	report  PruneReport

	*survey
	live   rootsOf // whose packs stay
	fading rootsOf // deleted, but so lately that a backup may just have been built on one
	dead   []listedRoot
	owners map[sessionID]owner

	old     []listedList           // whose grace is over
	due     map[objectID]layers.ID // packs in them, and which
	pending map[objectID]bool      // packs in the other lists
	held    map[layers.ID]bool     // old lists that stay

	places  map[layers.ID]*volumePlaces // of volumes of which something was moved
	targets map[objectID]bool           // packs that relocations lead to, and whether they are listed
	unclear map[layers.ID]bool          // volumes with maps that cannot be read

	sources    map[layers.ID]*sources // packs that may be copied
	considered int                    // of them, in all volumes

	freed    map[objectID]bool // packs that were removed
	retained map[string]bool   // objects that the store itself retains

	done, total int64
}

// rootsOf are the roots of each volume, in the order of their numbers.
type rootsOf map[layers.ID][]listedRoot

// An owner is the backup that wrote a pack, as its name tells it.
type owner struct {
	root    rootName
	keeps   bool // all its packs stay
	running bool // since it is being made
}

// run goes through the store once. The order of its steps is what makes it
// safe: see design.md.
func (p *prune) run(ctx context.Context) error {
	if err := p.begin(ctx); err != nil {
		return err
	}
	defer p.end(ctx)
	var err error
	if p.survey, err = p.repo.survey(ctx, p.id); err != nil {
		return err
	}
	p.sortRoots()
	if err := p.checkStones(ctx); err != nil {
		return err
	}
	if err := p.readMoves(ctx); err != nil {
		return err
	}
	if err := p.readLists(ctx); err != nil {
		return err
	}
	p.findOwners()
	if err := p.removeClaims(ctx); err != nil {
		return err
	}
	if err := p.removeSessions(ctx); err != nil {
		return err
	}
	if err := p.removeDead(ctx); err != nil {
		return err
	}
	if err := p.packs(ctx); err != nil {
		return err
	}
	if err := p.sweepMoves(ctx); err != nil {
		return err
	}
	if err := p.removeLists(ctx); err != nil {
		return err
	}
	return p.repack(ctx)
}

// begin writes an object, so that a listing tells the time by the store's
// clock even where nobody wrote anything for days.
func (p *prune) begin(ctx context.Context) error {
	f := make(fields)
	f.setID(bodyBackup, p.id)
	f.setTime(bodyTime, p.repo.now())
	f.setText(bodyHost, hostName())
	err := p.repo.store.Put(ctx, sessionName(p.id, 0), p.repo.sealBody(kindSession, p.id, f))
	if err != nil && !p.options.DryRun {
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

// end removes it. A crashed run's goes as other sessions do.
func (p *prune) end(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer stop()
	p.repo.store.Delete(ctx, sessionName(p.id, 0))
}

// sortRoots tells the backups that are needed from those that are deleted.
func (p *prune) sortRoots() {
	p.live, p.fading = make(rootsOf), make(rootsOf)
	for _, root := range p.roots {
		stone, deleted := p.stones[root.name.backup]
		volume := root.name.volume
		switch {
		case !deleted || p.leaned[root.name]:
			p.live[volume] = append(p.live[volume], root)
		case p.age(stone.modified) < p.options.Grace:
			p.fading[volume] = append(p.fading[volume], root)
		default:
			p.dead = append(p.dead, root)
		}
	}
	for _, stone := range p.stones {
		if p.age(stone.modified) < p.options.Grace {
			p.report.Waiting++
		}
	}
}

// readLists reads what was condemned. A root that was there then, and is
// neither listed nor deleted now, is asked for by its name: what a listing
// does not have proves nothing.
func (p *prune) readLists(ctx context.Context) error {
	p.due, p.pending, p.held = make(map[objectID]layers.ID), make(map[objectID]bool), make(map[layers.ID]bool)
	known := make(map[rootName]bool, len(p.roots))
	for _, root := range p.roots {
		known[root.name] = true
	}
	for _, l := range p.lists {
		over := p.age(l.modified) >= p.options.Grace
		if over {
			p.old = append(p.old, l)
		}
		list, err := p.repo.readCondemned(ctx, l.id, l.size)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // another run removed it
		case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion):
			p.keep(err) // what it names will be condemned again
			continue
		case err != nil:
			return fmt.Errorf("read what is condemned: %w", err)
		}
		if over {
			if err := p.findUnlisted(ctx, list.roots, known); err != nil {
				return err
			}
		}
		for _, pack := range list.packs {
			if over {
				p.due[pack.id] = l.id
			} else {
				p.pending[pack.id] = true
			}
		}
	}
	return nil
}

// findUnlisted adds the roots that are there though they are not listed.
func (p *prune) findUnlisted(ctx context.Context, seen []rootName, known map[rootName]bool) error {
	for _, name := range seen {
		if _, deleted := p.stones[name.backup]; deleted || known[name] {
			continue
		}
		known[name] = true
		there, err := p.repo.exists(ctx, name.String())
		if err != nil {
			return fmt.Errorf("look for a root that is not listed: %w", err)
		}
		if there {
			root := listedRoot{name: name}
			p.roots = append(p.roots, root)
			p.written[name.backup] = time.Time{}
			p.live[name.volume] = append(p.live[name.volume], root)
		}
	}
	return nil
}

// findOwners makes the names of packs tell whose they are. All packs of a
// backup that is there are needed by it, and those of one that is being made
// will be. Tombstones tell nothing here: nobody knows yet who wrote them.
func (p *prune) findOwners() {
	p.owners = make(map[sessionID]owner)
	for _, root := range p.roots {
		p.owners[sessionOf(root.name.backup)] = owner{root: root.name}
	}
	for _, roots := range p.live {
		for _, root := range roots {
			p.owners[sessionOf(root.name.backup)] = owner{root: root.name, keeps: true}
		}
	}
	for backup := range p.sessions {
		if _, committed := p.written[backup]; !committed {
			p.owners[sessionOf(backup)] = owner{keeps: true, running: true}
		}
	}
}

// removeSessions removes those of crashed backups, of committed ones whose root
// every listing has by now, and of those whose root goes. The packs of crashed ones are left to a later
// run: whoever finds its session gone must still find its packs.
func (p *prune) removeSessions(ctx context.Context) error {
	var names []string
	dead := make(map[layers.ID]bool)
	for _, root := range p.dead {
		dead[root.name.backup] = true
	}
	for backup, w := range p.sessions {
		at, committed := p.written[backup]
		seen := committed && !at.IsZero() && p.age(at) > sessionAfter
		if seen || dead[backup] || !committed && p.age(w.alive) > sessionDead {
			names = append(names, w.names...)
		}
	}
	return p.remove(ctx, names)
}

// removeDead removes the roots that nobody can need any more, and after them
// their tombstones.
func (p *prune) removeDead(ctx context.Context) error {
	var roots []string
	stones := make(map[string]listedStone) // by the root that they are for
	gone := make(map[layers.ID]string)
	for _, root := range p.dead {
		roots = append(roots, root.name.String())
		gone[root.name.backup] = root.name.String()
		p.report.Freed.add(root.size)
	}
	for backup, stone := range p.stones {
		if p.age(stone.modified) < p.options.Grace {
			continue
		}
		name := gone[backup]
		if _, listed := p.written[backup]; !listed {
			root, ok, err := p.rootOf(ctx, stone)
			if err != nil {
				return err
			}
			if !ok || p.leaned[root] {
				continue
			}
			name = root.String()
			roots = append(roots, name)
		} else if name == "" {
			continue // a backup that is being made leans on it
		}
		stones[name] = stone
		p.report.Freed.add(stone.size)
		p.report.Backups++
	}
	if err := p.remove(ctx, roots); err != nil {
		return err
	}
	for _, root := range p.dead {
		p.unfree(root.name.String(), root.size)
	}
	// A root that is retained must stay hidden.
	var names []string
	for root, stone := range stones {
		if p.retained[root] {
			p.report.Backups--
			p.report.Freed.Objects--
			p.report.Freed.Bytes -= stone.size
			continue
		}
		for _, caption := range p.captions[stone.backup] {
			names = append(names, caption.String())
		}
		names = append(append(names, p.holds[stone.backup]...), stone.name())
	}
	if err := p.remove(ctx, names); err != nil {
		return err
	}
	for _, stone := range stones {
		p.unfree(stone.name(), stone.size)
	}
	return nil
}

// removeLists removes the lists whose packs are gone, or needed again. One with
// packs of a backup that is being made stays: should it be made in several
// tries, none of them may take up what another run is just about to remove.
func (p *prune) removeLists(ctx context.Context) error {
	var names []string
	for _, l := range p.old {
		if p.held[l.id] {
			continue
		}
		names = append(names, listName(l.id))
	}
	return p.remove(ctx, names)
}

// keep remembers why something is left alone.
func (p *prune) keep(err error) {
	if len(p.report.Kept) < maxDamage {
		p.report.Kept = append(p.report.Kept, err)
	}
}

func (p *prune) progress(done, total int64) {
	p.done, p.total = p.done+done, p.total+total
	if p.options.Progress != nil {
		p.options.Progress(p.done, p.total)
	}
}
