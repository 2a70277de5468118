package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"varve/layers"
)

// A Job describes a backup to be made.
type Job struct {
	ID         layers.ID // of the backup; must be new
	Volume     layers.ID
	VolumeName string

	Name, Description string

	// Claim is that under which the host writes, as TakeOver returned it; its
	// zero if the host never took the volume over. A parent of a higher epoch
	// goes before it. Host is for people; empty: this machine's name.
	Claim Claim
	Host  string

	Parent   layers.ID    // zero: a full backup
	Source   layers.Layer // the whole content at the instant
	Changes  layers.Layer // where Source may differ from Parent; nil: everywhere
	Boundary layers.ID    // of the volume's chain; zero if none
	Snapshot layers.ID    // the snapshot that the user named; zero if none

	DataTimestamp time.Time
	Created       time.Time   // zero: now
	Compression   Compression // zero: the repository's
	Meta          map[string]string

	// Resume is the last Checkpoint of an earlier Create of this backup, with
	// the same ID and a Source of the same instant: what that has stored is
	// not stored again.
	Resume Checkpoint

	// Checkpoint, if it is not nil, is to keep what it is given before it
	// returns, and may refuse. After an error what was stored stays, for
	// another Create or for Discard. It is never called by two goroutines at
	// once.
	Checkpoint func(Checkpoint) error

	// Progress is told the bytes examined and the bytes to examine in all, if
	// it is not nil; never by two goroutines at once.
	Progress func(done, total int64)
}

// Create makes a backup and returns once it is durable. After an error there
// is no backup, and what had been stored for it is removed again, as by
// Discard and as far as the store allows; unless Job.Checkpoint is there to go
// on later. Errors: ErrParentGone; ErrParentDamaged; ErrStale; fs.ErrExist if the volume has a
// backup of that ID and there is nothing to resume; those of the source and of the store.
//
// Only the blocks that Changes names are read. The order is session, packs,
// leaves, root; the root's Put is the commit.
func (r *Repo) Create(ctx context.Context, j Job) (Backup, error) {
	b, err := r.create(ctx, &j)
	if err != nil {
		return Backup{}, fmt.Errorf("backup %s: %w", j.ID, err)
	}
	return b, nil
}

func (r *Repo) create(ctx context.Context, j *Job) (Backup, error) {
	j.Compression = cmp.Or(j.Compression, r.head.level)
	if err := j.validate(); err != nil {
		return Backup{}, err
	}
	w, err := r.prepare(ctx, j)
	if err != nil {
		return Backup{}, err
	}
	if w.done {
		return w.root.backup, nil
	}
	err = w.copy(ctx)
	if err == nil {
		err = w.commit(ctx)
	}
	w.session.close()
	if err != nil {
		w.undo(ctx)
		return Backup{}, err
	}
	w.taken.clear(ctx, w)
	return w.root.backup, nil
}

func (j *Job) validate() error {
	switch {
	case j.ID.IsZero() || j.Volume.IsZero():
		return errors.New("no ID, or no volume's ID")
	case j.Source == nil || j.Source.Size() <= 0:
		return errors.New("the source is empty")
	case !j.Compression.known():
		return fmt.Errorf("unknown %v", j.Compression)
	case len(j.Resume.Tries) > triesMax:
		return fmt.Errorf("it was cut off %d times: make the backup again", len(j.Resume.Tries))
	}
	if j.Created.IsZero() {
		j.Created = time.Now()
	}
	if j.Host == "" {
		j.Host = hostName()
	}
	if j.DataTimestamp.IsZero() {
		j.DataTimestamp = j.Created
	}
	r := root{backup: j.describe(), spans: new(spans), ancestors: make([]layers.ID, maxAncestors)}
	if n := len(r.summary().append(nil)) + 1024; n > maxSummary {
		return fmt.Errorf("names, description and metadata take %d bytes, %d are allowed", n, maxSummary)
	}
	return nil
}

// describe returns what the job says about the backup to come.
func (j *Job) describe() Backup {
	created := j.Created.UTC().Truncate(time.Millisecond)
	return Backup{
		ID: j.ID, Volume: j.Volume, VolumeName: j.VolumeName,
		Name: j.Name, Description: j.Description,
		Parent: j.Parent, Boundary: j.Boundary, Snapshot: j.Snapshot, Claim: j.Claim.ID, Host: j.Host,
		Size: j.Source.Size(), Incremental: !j.Parent.IsZero(),
		Created: created, Updated: created, DataTimestamp: j.DataTimestamp.UTC().Truncate(time.Millisecond),
		Meta: maps.Clone(j.Meta),
	}
}

// prepare looks at what the repository has of the volume.
func (r *Repo) prepare(ctx context.Context, j *Job) (*writer, error) {
	w := &writer{repo: r, job: j, ledger: newLedger(j), root: &root{backup: j.describe(), spans: new(spans)}}
	w.footing = &footing{repo: r, parent: rootName{volume: j.Volume, backup: j.Parent}, asked: r.moment()}
	l, err := r.list(ctx, volumePrefix(j.Volume))
	if err != nil {
		return nil, err
	}
	w.root.name = rootName{volume: j.Volume, epoch: max(1, j.Claim.Epoch), seq: 1, backup: j.ID}
	if err := w.findMade(ctx, l); err != nil || w.done {
		return w, err
	}
	for _, root := range l.roots {
		if w.job.Resume.Root != "" {
			break // the name is given
		}
		w.number(root.name)
	}
	w.footing.parent = rootName{}
	var parentRoot string
	if !j.Parent.IsZero() {
		parent, ok := r.index.find(j.Parent) // list has taught it, and taken out the deleted ones
		if !ok || parent.name.volume != j.Volume {
			r.index.forget(j.Parent)
			return nil, fmt.Errorf("%w: %s is not among the backups of volume %s; make a full backup", ErrParentGone, j.Parent, j.Volume)
		}
		if err := w.readParent(ctx, parent, l); err != nil {
			return nil, err
		}
		w.footing.parent = parent.name
		parentRoot = parent.name.String()
	}
	if err := w.prepareKey(ctx, l); err != nil {
		return nil, err
	}
	w.session = newSession(w, l, parentRoot, j.Resume.Sessions)
	if w.taken = newTaken(w, j.Resume.stored()); w.taken != nil {
		// Before their packs are looked at: from now on pruning condemns none.
		if err := w.session.start(ctx); err != nil {
			return nil, err
		}
		if w.taken.condemned, err = r.condemnedOf(ctx, sessionOf(j.ID)); err != nil {
			w.session.close()
			return nil, err
		}
	}
	return w, nil
}

// number gives the root to come a higher number than another one has.
func (w *writer) number(other rootName) {
	w.root.name.seq = max(w.root.name.seq, other.seq+1)
}

// follow makes the root to come later than its parent: packs are referenced
// only by backups that come later than the one that wrote them. Under a claim
// that is later than the job's the backup is the claim's.
func (w *writer) follow(parent *root) {
	w.number(parent.name)
	if parent.name.epoch > w.root.name.epoch {
		w.root.name.epoch, w.root.backup.Claim = parent.name.epoch, parent.backup.Claim
	}
}

// readParent takes over the map of the parent.
func (w *writer) readParent(ctx context.Context, listed listedRoot, l *listing) error {
	w.repo.loadMoves(ctx, listed.name.volume) // whoever misses a leaf looks again
	var parent *root
	var err error
	if s, known := w.knownParent(listed.name, l); known {
		parent, err = w.repo.openRootObject(ctx, bytes.Clone(s.object), s.name) // in place
	} else {
		parent, err = w.fetchParent(ctx, listed, l)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make a full backup: %w", ErrParentGone, err)
	}
	if errors.Is(err, ErrCorrupt) {
		return damagedParent(err)
	}
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if size := w.job.Source.Size(); size < parent.backup.Size {
		return fmt.Errorf("the volume has %d bytes, its backup %s had %d: make a full backup", size, w.job.Parent, parent.backup.Size)
	}
	w.parent, w.parentKey = parent.spans, parent.key
	w.follow(parent) // the listing may lag behind it
	w.root.ancestors = append([]layers.ID{parent.backup.ID}, parent.ancestors...)
	w.root.ancestors = w.root.ancestors[:min(len(w.root.ancestors), maxAncestors)]
	return nil
}

// commit puts the root.
func (w *writer) commit(ctx context.Context) error {
	if err := w.hold(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if w.ledger.madeKey() {
		w.objects, w.stored = w.objects+1, w.stored+wrappedSize
	}
	name := w.root.name
	if err := w.ledger.root(name); err != nil {
		return err
	}
	object := w.root.seal(w.key, w.objects, w.stored)
	began := w.repo.moment()
	if err := w.repo.store.Put(ctx, name.String(), object); err != nil {
		if w.job.Checkpoint != nil && ctx.Err() != nil {
			return context.Cause(ctx) // who goes on asks for the root
		}
		if !w.committed(ctx, object) {
			return fmt.Errorf("write root: %w", err)
		}
	}
	if w.footing.overtaken() || w.session.check() != nil {
		return w.withdraw(ctx)
	}
	w.repo.index.add(listedRoot{name: name, size: int64(len(object))})
	w.repo.index.keep(&standing{name, object, began}, w.repo.passed)
	return nil
}

// hold makes sure that the backup may be committed, and that its session was
// not renewed so long ago that it might end while the root is under way.
func (w *writer) hold(ctx context.Context) error {
	for {
		if err := w.session.refresh(ctx); err != nil {
			return err
		}
		if err := w.footing.hold(ctx, w.session); err != nil || !w.session.aged() {
			return err
		}
	}
}

// cleanupTime bounds what is done after the caller's context has ended.
const cleanupTime = 30 * time.Second

// committed finds out what became of a root whose Put failed: an answer may
// have been lost on its way. One that is not there is removed all the same, in
// case it is still under way, and the packs stay for pruning: should the root
// appear after all, it is whole.
func (w *writer) committed(ctx context.Context, object []byte) bool {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer stop()
	name := w.root.name.String()
	found, err := w.repo.readAll(ctx, name, int64(len(object)))
	if err == nil && bytes.Equal(found, object) {
		return true
	}
	w.repo.store.Delete(ctx, name)
	return false
}

// withdraw removes a root that was so long under way that pruning may have
// taken something that it needs.
func (w *writer) withdraw(ctx context.Context) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer stop()
	name := w.root.name.String()
	reason := fmt.Sprintf("the root was under way for longer than %v, and what it names may have been pruned; make the backup again", sessionGrace)
	if failed := w.repo.store.Delete(ctx, name); failed != nil {
		// Nobody is to go on from here: the root would be taken for whole.
		return fmt.Errorf("%s; %s could not be removed: %v", reason, name, failed)
	}
	return fmt.Errorf("%w: %s", ErrStale, reason)
}

// undo removes what was stored for a backup that has no root, unless that is
// to be gone on with. What can't be removed is left to pruning, which the
// session tells that nobody is at work.
func (w *writer) undo(ctx context.Context) {
	if w.job.Checkpoint != nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer stop()
	w.repo.Discard(ctx, w.job.ID, w.ledger.point)
}
