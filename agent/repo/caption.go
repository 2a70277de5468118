package repo

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A root never changes, and a backup's name may. So what people call a backup
// can stand in an object beside its root, its caption: it counts in the place of
// the root's own texts, and the one with the highest number counts. Whoever
// writes one removes those before it, when it is there. Two hosts that write one
// at the same instant give both the same number; the object's ID decides then, so
// that all hosts see the same one.

// A Caption is what people call a backup and keep with it.
type Caption struct {
	Name, Description string
	Meta              map[string]string
}

// A caption is one as it is stored.
type caption struct {
	name    captionName
	text    Caption
	created time.Time
	host    string
}

// A captionName is what the name of a caption says.
type captionName struct {
	volume, backup layers.ID
	number         uint64 // from 1 on
	id             objectID
}

func (n captionName) String() string {
	return fmt.Sprintf("%sn/%s-%s", volumePrefix(n.volume), n.backup, n.ref())
}

// ref tells the captions of one backup apart.
func (n captionName) ref() string { return fmt.Sprintf("%016x-%s", n.number, n.id) }

// compare orders the captions of one backup: the last one counts.
func (n captionName) compare(o captionName) int {
	return cmp.Or(cmp.Compare(n.number, o.number), slices.Compare(n.id[:], o.id[:]))
}

// caption reads what captionName.String wrote.
func (n volumeName) caption() (captionName, bool) {
	if n.kind != "n" || len(n.rest) != 36+1+16+1+40 || n.rest[36] != '-' {
		return captionName{}, false
	}
	backup, err1 := layers.ParseID(n.rest[:36])
	number, err2 := strconv.ParseUint(n.rest[37:53], 16, 64)
	name := captionName{volume: n.volume, backup: backup, number: number}
	_, err3 := hex.Decode(name.id[:], []byte(n.rest[54:]))
	ok := err1 == nil && err2 == nil && err3 == nil && number >= 1 && number <= math.MaxInt64
	return name, ok && name.String() == n.String()
}

// Recaption changes what a backup is called and what is kept with it, for all
// hosts, and returns the backup as it is then. edit is given what holds now, and
// may refuse. Hosts learn of it with their next listing; of two that change one
// backup at the same instant one wins. A backup that is not there is an error
// that wraps fs.ErrNotExist.
func (r *Repo) Recaption(ctx context.Context, id layers.ID, edit func(*Caption) error) (Backup, error) {
	b, err := r.recaption(ctx, id, edit)
	if err != nil {
		return Backup{}, fmt.Errorf("change backup %s: %w", id, err)
	}
	return b, nil
}

func (r *Repo) recaption(ctx context.Context, id layers.ID, edit func(*Caption) error) (Backup, error) {
	select {
	case r.captions.writing <- struct{}{}: // of this host one at a time, so that none of them is lost
		defer func() { <-r.captions.writing }()
	case <-ctx.Done():
		return Backup{}, context.Cause(ctx)
	}
	known, _, err := r.find(ctx, id)
	if err != nil {
		return Backup{}, err
	}
	volume := known.name.volume
	l, err := r.list(ctx, volumePrefix(volume))
	if err != nil {
		return Backup{}, err
	}
	root, ok := r.index.find(id) // It may be younger than the listing, which has taken it out if it is deleted.
	if !ok {
		return Backup{}, absent(id)
	}
	b, old, err := r.describe(ctx, root)
	if err != nil {
		return Backup{}, err
	}
	next := caption{name: captionName{volume: volume, backup: id, number: 1, id: newObjectID(id)}, created: fromMilli(unixMilli(r.now())), host: hostName()}
	next.text = Caption{b.Name, b.Description, maps.Clone(b.Meta)}
	if err := edit(&next.text); err != nil {
		return Backup{}, err
	}
	if next.text.Name == b.Name && next.text.Description == b.Description && maps.Equal(next.text.Meta, b.Meta) {
		return b, nil
	}
	if old != nil {
		next.name.number = old.name.number + 1
	}
	if next.name.number > math.MaxInt64 {
		return Backup{}, damaged(old.name.String(), 0, fmt.Errorf("no number comes after %d", old.name.number))
	}
	if err := r.store.Put(ctx, next.name.String(), r.sealBody(kindCaption, id, next.body())); err != nil {
		return Backup{}, fmt.Errorf("write caption: %w", err)
	}
	var before []string
	for _, name := range l.captions[id] {
		before = append(before, name.String())
	}
	r.captions.forget(id)
	r.captions.note(next.name)
	next.describe(&b)
	if len(before) == 0 {
		return b, nil
	}
	r.store.Delete(ctx, before...) // What stays does no harm, and goes with the next one.
	return b, nil
}

// describe sets what the caption says of a backup.
func (c *caption) describe(b *Backup) {
	b.Name, b.Description, b.Meta = c.text.Name, c.text.Description, c.text.Meta
	b.Updated, b.Caption = c.created, c.name.ref()
}

// describe reads what a root says about its backup, and beside it the caption
// that counts, which is nil if there is none.
func (r *Repo) describe(ctx context.Context, listed listedRoot) (b Backup, c *caption, err error) {
	ref := r.captions.ref(listed.name.backup) // before it is read, so that a newer one is never taken for known
	if ref == "" {
		b, err = r.readSummary(ctx, listed)
		return b, nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		b, err = r.readSummary(ctx, listed)
		return err
	})
	g.Go(func() (err error) {
		c, err = r.caption(ctx, listed.name)
		return err
	})
	if err := g.Wait(); err != nil {
		return Backup{}, nil, err
	}
	if c != nil {
		c.describe(&b)
	}
	b.Caption = ref
	return b, c, nil
}

// caption reads the caption of a backup that counts; nil if there is none. One
// that is gone has most likely been replaced, so the volume is listed again.
func (r *Repo) caption(ctx context.Context, root rootName) (*caption, error) {
	for listed := false; ; listed = true {
		c, gone, err := r.firstCaption(ctx, root.backup)
		if err != nil || !gone || listed {
			return c, err
		}
		if _, err := r.list(ctx, volumePrefix(root.volume)); err != nil {
			return nil, err
		}
	}
}

// firstCaption reads the first of the known captions of a backup that is there
// and whole, and tells whether one before it is gone. What is not whole, of a
// later version or not what its name says is none: an audit says what is wrong
// with it.
func (r *Repo) firstCaption(ctx context.Context, backup layers.ID) (c *caption, gone bool, err error) {
	for _, name := range r.captions.of(backup) {
		c, err := r.readCaption(ctx, name)
		switch {
		case err == nil:
			return c, gone, nil
		case errors.Is(err, fs.ErrNotExist):
			r.captions.drop(name)
			gone = true
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion):
			return nil, gone, fmt.Errorf("read caption: %w", err)
		}
	}
	return nil, gone, nil
}

func (r *Repo) readCaption(ctx context.Context, name captionName) (*caption, error) {
	b, err := r.readAll(ctx, name.String(), maxBody)
	if err != nil {
		return nil, err
	}
	c, err := r.openCaption(b, name)
	if err != nil {
		return nil, damaged(name.String(), 0, err)
	}
	return c, nil
}

// body is what the object says: docs/format.md 2.9.
func (c *caption) body() fields {
	f := make(fields)
	f.setID(bodyBackup, c.name.backup)
	f.setID(bodyVolume, c.name.volume)
	f.setTime(bodyTime, c.created)
	f.setNumber(bodyNumber, int64(c.name.number))
	f.setText(bodyHost, c.host)
	f.setText(bodyName, c.text.Name)
	f.setText(bodyDescription, c.text.Description)
	f[bodyMeta] = appendPairs(nil, c.text.Meta)
	return f
}

// openCaption reads what Recaption sealed for the object of that name.
func (r *Repo) openCaption(b []byte, name captionName) (*caption, error) {
	f, err := r.openBody(b, kindCaption)
	if err != nil {
		return nil, err
	}
	return parseCaption(f, name)
}

func parseCaption(f fields, name captionName) (*caption, error) {
	backup, err1 := f.id(bodyBackup)
	volume, err2 := f.id(bodyVolume)
	number, err3 := f.number(bodyNumber)
	created, err4 := f.time(bodyTime)
	meta, err5 := parsePairs(f[bodyMeta])
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	if backup != name.backup || volume != name.volume || uint64(number) != name.number {
		return nil, fmt.Errorf("it is caption %d of backup %s of volume %s", number, backup, volume)
	}
	return &caption{name, Caption{f.text(bodyName), f.text(bodyDescription), meta}, created, f.text(bodyHost)}, nil
}

// captionsKept bounds how many captions of one backup are remembered. There is
// one, or for instants two.
const captionsKept = 8

// captions remembers those that listings had, by backup, the one that counts
// first. A listing may lag: so what this host wrote itself counts until somebody
// looks for it and it is not there. It is safe for concurrent use.
type captions struct {
	writing chan struct{} // of one place: whoever writes one is in there

	mu    sync.Mutex
	known map[layers.ID][]captionName
}

func newCaptions() *captions {
	return &captions{writing: make(chan struct{}, 1), known: make(map[layers.ID][]captionName)}
}

func (x *captions) note(n captionName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := x.known[n.backup]
	at, there := slices.BinarySearchFunc(names, n, func(a, b captionName) int { return b.compare(a) })
	if there {
		return
	}
	names = slices.Insert(slices.Clone(names), at, n)
	x.known[n.backup] = names[:min(len(names), captionsKept)]
}

func (x *captions) drop(n captionName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := slices.DeleteFunc(slices.Clone(x.known[n.backup]), func(o captionName) bool { return o == n })
	if x.known[n.backup] = names; len(names) == 0 {
		delete(x.known, n.backup)
	}
}

func (x *captions) forget(backup layers.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.known, backup)
}

// of returns those of a backup. Nobody may change them.
func (x *captions) of(backup layers.ID) []captionName {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.known[backup]
}

// ref tells which caption of a backup counts, as Backup.Caption does.
func (x *captions) ref(backup layers.ID) string {
	if names := x.of(backup); len(names) > 0 {
		return names[0].ref()
	}
	return ""
}
