package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A Backup is what the repository says about one backup. Each reads as a full
// one, whatever its parent became.
type Backup struct {
	ID         layers.ID
	Volume     layers.ID
	Parent     layers.ID // zero: it was made as a full backup
	Boundary   layers.ID // of the volume's chain; zero if there was none
	Snapshot   layers.ID // the snapshot that the user named; zero if none
	VolumeName string

	Name, Description string

	Size    int64 // of the volume, bytes
	Logical int64 // bytes of data that this backup added, before compression
	Changed int64 // bytes that may differ from the parent, zeros included; of a full backup all data
	Stored  int64 // bytes of the objects that this backup added
	Objects int64 // objects that this backup added, and that stay with it

	// Where it stands in the volume's lineage, and who wrote it there.
	Epoch, Number uint64
	Claim         layers.ID // that it was written under; zero: none
	Host          string    // for people; empty: not known

	Incremental   bool
	Protected     bool   // against deletion: see Protect
	Caption       string // tells which caption its texts are from; empty: none, they are its root's own
	Created       time.Time
	Updated       time.Time // when the caption was written; Created without one
	DataTimestamp time.Time
	Meta          map[string]string
}

// listAhead is how many roots are read at once for a listing.
const listAhead = 8

// Backups yields every backup that is not deleted, oldest first within each
// volume. A damaged one is yielded as an error that names it, with what its name
// says (ID, Volume, Epoch and Number), and never hides the others. An object whose name is not
// of this format is not a backup: it is passed over.
func (r *Repo) Backups(ctx context.Context) iter.Seq2[Backup, error] {
	return r.NewBackups(ctx, func(layers.ID, string) bool { return false })
}

// NewBackups is Backups for who knows most of them: known says whether a backup
// is, with the caption that it has now. Of one that is known nothing is read, and
// only its ID, its Volume, Protected and Caption are yielded.
func (r *Repo) NewBackups(ctx context.Context, known func(id layers.ID, caption string) bool) iter.Seq2[Backup, error] {
	return func(yield func(Backup, error) bool) {
		l, err := r.list(ctx, volumesRoot)
		if err != nil {
			yield(Backup{}, err)
			return
		}
		live := l.roots[:0:0]
		for _, root := range l.roots {
			if !l.deleted[root.name.backup] {
				live = append(live, root)
			}
		}
		r.summaries(ctx, live, known, yield)
	}
}

// summaries reads listAhead roots ahead of the one that is yielded.
func (r *Repo) summaries(ctx context.Context, roots []listedRoot, known func(layers.ID, string) bool, yield func(Backup, error) bool) {
	ahead, stop := context.WithCancel(ctx)
	defer stop()
	type answer struct {
		backup Backup
		err    error
	}
	answers := make([]chan answer, len(roots))
	begin := func(i int) {
		if i >= len(roots) {
			return
		}
		answers[i] = make(chan answer, 1)
		name := roots[i].name
		if ref := r.captions.ref(name.backup); known(name.backup, ref) {
			answers[i] <- answer{Backup{ID: name.backup, Volume: name.volume, Protected: roots[i].held, Caption: ref}, nil}
			return
		}
		go func() {
			b, _, err := r.describe(ahead, roots[i])
			answers[i] <- answer{b, err}
		}()
	}
	for i := range listAhead {
		begin(i)
	}
	for i, root := range roots {
		begin(i + listAhead)
		a := <-answers[i]
		if err := ctx.Err(); err != nil {
			yield(Backup{}, fmt.Errorf("list backups: %w", err))
			return
		}
		if errors.Is(a.err, fs.ErrNotExist) {
			continue // pruned: the listing lags
		}
		if a.err != nil {
			name := root.name
			a.backup = Backup{ID: name.backup, Volume: name.volume, Epoch: name.epoch, Number: name.seq, Protected: root.held}
			a.err = fmt.Errorf("backup %s: %w", root.name.backup, a.err)
		}
		if !yield(a.backup, a.err) {
			return
		}
	}
}

// Backup describes one backup. One that is not there, or deleted, is an error
// that wraps fs.ErrNotExist.
//
// The first call for a backup that no listing had yet lists all names below
// v/; after that it costs one round trip.
func (r *Repo) Backup(ctx context.Context, id layers.ID) (Backup, error) {
	listed, fresh, err := r.find(ctx, id)
	if err != nil {
		return Backup{}, err
	}
	var b Backup
	var damage error
	g, ctx := errgroup.WithContext(ctx)
	if !fresh {
		g.Go(func() error { return r.checkLive(ctx, listed.name) })
	}
	g.Go(func() error {
		b, _, damage = r.describe(ctx, listed)
		return nil // a tombstone explains a root that is gone
	})
	if err := g.Wait(); err != nil {
		return Backup{}, err
	}
	if damage != nil {
		return Backup{}, fmt.Errorf("backup %s: %w", id, damage)
	}
	return b, nil
}

// Delete hides the backup at once, by a tombstone; pruning frees its space
// later. Backups that share data with it stay whole. One that is not there is
// an error that wraps fs.ErrNotExist, one that is known to be protected
// ErrProtected; a damaged one can be deleted. One that a listing had is deleted
// with one request: that another host deleted it since is not asked, as both
// tombstones say the same.
func (r *Repo) Delete(ctx context.Context, id layers.ID) error {
	listed, _, err := r.find(ctx, id)
	if err != nil {
		return err
	}
	if listed.held {
		return fmt.Errorf("delete backup %s: %w", id, ErrProtected)
	}
	f := make(fields)
	f.setID(bodyBackup, id)
	f.setID(bodyVolume, listed.name.volume)
	f.setTime(bodyTime, time.Now())
	f.setText(bodyRoot, listed.name.String())
	f.setText(bodyHost, hostName())
	stone := r.sealBody(kindTombstone, id, f)
	if err := r.store.Put(ctx, tombstoneName(listed.name.volume, id), stone); err != nil {
		return fmt.Errorf("delete backup %s: %w", id, err)
	}
	r.index.forget(id)
	r.captions.forget(id)
	return nil
}

// Tags in the bodies of sessions and tombstones: docs/format.md 2.9.
const (
	bodyBackup     = 1
	bodyVolume     = 2
	bodyParent     = 3
	bodyParentRoot = 4
	bodyTime       = 5
	bodyNumber     = 6
	bodyRoot       = 7
	bodyHost       = 8

	// Of captions; relocations and condemned lists have those between.
	bodyName        = 14
	bodyDescription = 15
	bodyMeta        = 16
)

// sealBody makes a small object of fields under the repository's own key.
func (r *Repo) sealBody(kind objectKind, backup layers.ID, f fields) []byte {
	return r.sealObject(kind, newObjectID(backup), f)
}

func (r *Repo) sealObject(kind objectKind, id objectID, f fields) []byte {
	key, text := r.keys.own(), f.append(nil)
	h := header{
		kind: kind, suite: key.suite, id: id, key: key.ref, commitment: key.commitment(id),
		inner: uint32(len(text) + tagSize), total: int64(headerSize + len(text) + tagSize),
	}
	b := h.append(make([]byte, 0, h.total))
	return key.sealer(id).seal(b, text, sectionBody, 0, b[:headerBound])
}

// openBody reads what sealBody made.
func (r *Repo) openBody(b []byte, kind objectKind) (fields, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	key := r.keys.own()
	switch {
	case h.kind != kind:
		return nil, fmt.Errorf("kind of object %d, expected %d", h.kind, kind)
	case h.total != int64(len(b)) || int64(h.inner) != h.total-headerSize:
		return nil, fmt.Errorf("%d bytes, says %d", len(b), h.total)
	case h.suite != key.suite || h.key != key.ref || h.commitment != key.commitment(h.id):
		return nil, fmt.Errorf("sealed with another key")
	}
	text, err := key.sealer(h.id).open(b[headerSize:], sectionBody, 0, b[:headerBound])
	if err != nil {
		return nil, err
	}
	return parseFields(text)
}

// hostName is for people who look for who wrote an object.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "" // it is only a remark
	}
	return name
}
