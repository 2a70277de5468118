package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// The lineage of a volume is the chain of its backups in a repository. It has
// one writer at a time, the host that the volume is on. Another host that takes
// it over writes a claim with a higher epoch, and its backups are of that epoch.
// Claims lock nobody out: a host that has not heard of one goes on, its backups
// are as whole as all others, and the lineage forks. Claims and roots tell
// where, and who wrote what.

// A Claim says that a host took over a volume's backups: the volume is there
// now, and goes on from one of them.
type Claim struct {
	ID      layers.ID
	Volume  layers.ID
	Epoch   uint64   // from 2 on; the host with the highest is the writer
	After   Position // the backup that the volume goes on from
	Host    string   // for people
	Created time.Time
}

// A Position says where in its volume's lineage a backup stands. It comes after
// all that it was made from.
type Position struct {
	Backup layers.ID
	Epoch  uint64 // of the claim that it was written under; 1 without
	Number uint64 // higher than those of the backups that its writer saw
}

// Compare orders the positions of one volume by epoch and number.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Number, q.Number))
}

func (n rootName) position() Position { return Position{n.backup, n.epoch, n.seq} }

// TakeOver makes host the writer of the lineage of a backup's volume, which goes
// on from that backup, and returns the claim. id names the claim: who does not
// know whether it was written calls again with the same. A backup that is not
// there is an error that wraps fs.ErrNotExist.
func (r *Repo) TakeOver(ctx context.Context, id, backup layers.ID, host string) (Claim, error) {
	c, err := r.takeOver(ctx, id, backup, host)
	if err != nil {
		return Claim{}, fmt.Errorf("take over from backup %s: %w", backup, err)
	}
	return c, nil
}

func (r *Repo) takeOver(ctx context.Context, id, backup layers.ID, host string) (Claim, error) {
	after, _, err := r.find(ctx, backup)
	if err != nil {
		return Claim{}, err
	}
	c := Claim{ID: id, Volume: after.name.volume, Epoch: after.name.epoch, After: after.name.position(), Host: host, Created: fromMilli(unixMilli(r.now()))}
	if _, err := r.list(ctx, volumePrefix(c.Volume)); err != nil {
		return Claim{}, err
	}
	others, err := r.Claims(ctx)
	if err != nil {
		return Claim{}, err
	}
	for _, other := range others {
		if other.ID == id {
			return other, nil
		}
		if other.Volume == c.Volume {
			c.Epoch = max(c.Epoch, other.Epoch)
		}
	}
	if c.Epoch >= math.MaxInt64 {
		return Claim{}, damaged(after.name.String(), 0, fmt.Errorf("no epoch comes after %d", c.Epoch))
	}
	c.Epoch++
	if err := r.store.Put(ctx, c.name().String(), r.sealClaim(&c)); err != nil {
		return Claim{}, fmt.Errorf("write claim: %w", err)
	}
	r.claims.note(c.name())
	r.claims.keep(c.name(), &c)
	return c, nil
}

// Claims returns the claims that were listed so far: those of one volume once
// something was made or looked for in it, all after Backups. Within a volume
// the lowest epoch comes first. Each is read once. What is not whole, or not
// what its name says, is no claim: whoever writes to the store could put it
// there.
func (r *Repo) Claims(ctx context.Context) ([]Claim, error) {
	names := r.claims.names()
	found := make([]*Claim, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listAhead)
	for i, name := range names {
		g.Go(func() (err error) {
			found[i], err = r.claim(ctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	claims := make([]Claim, 0, len(found))
	for _, c := range found {
		if c != nil {
			claims = append(claims, *c)
		}
	}
	return claims, nil
}

// claim returns the claim of that name, nil if there is none.
func (r *Repo) claim(ctx context.Context, name claimName) (*Claim, error) {
	if c, known := r.claims.find(name); known {
		return c, nil
	}
	b, err := r.readAll(ctx, name.String(), maxBody)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil && !errors.Is(err, ErrCorrupt):
		return nil, fmt.Errorf("read claim: %w", err)
	}
	c, err := r.openClaim(b, name)
	if err != nil {
		c = nil // An audit says what is wrong with it.
	}
	r.claims.keep(name, c)
	return c, nil
}

func (r *Repo) sealClaim(c *Claim) []byte { return r.sealBody(kindClaim, c.ID, c.body()) }

// body is what the object says: docs/format.md 2.9.
func (c *Claim) body() fields {
	after := rootName{c.Volume, c.After.Epoch, c.After.Number, c.After.Backup}
	f := make(fields)
	f.setID(bodyBackup, c.ID)
	f.setID(bodyVolume, c.Volume)
	f.setID(bodyParent, after.backup)
	f.setText(bodyParentRoot, after.String())
	f.setTime(bodyTime, c.Created)
	f.setNumber(bodyNumber, int64(c.Epoch))
	f.setText(bodyHost, c.Host)
	return f
}

// openClaim reads what sealClaim made for the object of that name.
func (r *Repo) openClaim(b []byte, name claimName) (*Claim, error) {
	f, err := r.openBody(b, kindClaim)
	if err != nil {
		return nil, err
	}
	return parseClaim(f, name)
}

func parseClaim(f fields, name claimName) (*Claim, error) {
	id, err1 := f.id(bodyBackup)
	volume, err2 := f.id(bodyVolume)
	epoch, err3 := f.number(bodyNumber)
	created, err4 := f.time(bodyTime)
	backup, err5 := f.id(bodyParent)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	if got := (claimName{volume, uint64(epoch), id}); got != name {
		return nil, fmt.Errorf("it is claim %s", got)
	}
	after, ok := parseRoot(f.text(bodyParentRoot))
	if !ok || after.volume != volume || after.backup != backup || after.epoch >= name.epoch {
		return nil, fmt.Errorf("a claim of epoch %d that goes on from the root %q", name.epoch, f.text(bodyParentRoot))
	}
	return &Claim{ID: id, Volume: volume, Epoch: name.epoch, After: after.position(), Host: f.text(bodyHost), Created: created}, nil
}

// claims remembers those that listings had, and what was read of them; they
// never change. It is safe for concurrent use.
type claims struct {
	mu   sync.Mutex
	read map[claimName]*Claim // what is not read yet has no value; nil: it is none
	seen map[claimName]bool
}

func newClaims() *claims {
	return &claims{read: make(map[claimName]*Claim), seen: make(map[claimName]bool)}
}

func (x *claims) note(n claimName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.seen[n] = true
}

func (x *claims) keep(n claimName, c *Claim) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.read[n] = c
}

func (x *claims) find(n claimName) (c *Claim, known bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	c, known = x.read[n]
	return c, known
}

// names returns all that were listed, by volume and epoch.
func (x *claims) names() []claimName {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := make([]claimName, 0, len(x.seen))
	for n := range x.seen {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b claimName) int { return cmp.Compare(a.String(), b.String()) })
	return names
}
