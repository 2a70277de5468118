package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// Bounds on the patience with a target. Operations that move data have none
// but the store's retries.
const (
	openTimeout  = time.Minute     // to open its repository, a key derivation included
	syncTimeout  = 5 * time.Minute // to read its list of backups
	probeTimeout = 5 * time.Second // to answer at all
	seenFresh    = time.Minute     // for which a repository that was there is taken to be there
)

// maxRequests is how many requests to one target are under way at once.
const maxRequests = 16

// NewTarget says what target to add. Exactly one of Passphrase, KeyFile and
// NoEncryption is set.
type NewTarget struct {
	Name         string
	URL          string // scheme://…, without credentials
	Passphrase   string // or a recovery key
	KeyFile      []byte // its content
	NoEncryption bool
	Compression  string            // of backups that ask for none: fastest, or default; empty: fastest. A repository that is there keeps its own
	Env          map[string]string // the target's credentials, by the names of the usual environment
	Settings     TargetSettings
}

// An AddedTarget is a target that was just added. If its repository was made,
// encrypted, RecoveryKey opens it too; it is kept nowhere and told this once.
type AddedTarget struct {
	catalog.Target
	RecoveryKey string
}

// A target is what the agent has in memory of a target.
type target struct {
	opening chan struct{} // holds one place: for who opens the store or the repository

	gate  *object.Gate
	store object.Switch // as it was opened, without retries

	// These are guarded by Agent.mu.
	repo    *repo.Repo // nil until it is used
	seen    time.Time  // when the store was last found to hold it
	users   int        // who needs it now
	removed bool
	poll    *poll // that is under way; nil: none
	away    bool  // the last poll failed

	leftKeys []string // what was seen last of rotations that were cut off, a sentence each

	verifying bool // an operation checks all of it
}

func newTarget(record catalog.Target) *target {
	t := &target{opening: make(chan struct{}, 1), gate: object.NewGate(maxRequests)}
	t.gate.SetRates(ratesOf(record))
	return t
}

// AddTarget opens the repository at the URL, or creates it if the place is
// empty, reads its list of backups and remembers it.
func (a *Agent) AddTarget(ctx context.Context, n NewTarget) (AddedTarget, error) {
	record, err := a.checkTarget(n)
	if err != nil {
		return AddedTarget{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	store, err := a.config.CreateStore(ctx, placeOf(record, n.Env))
	if err != nil {
		return AddedTarget{}, targetError(record, "open", err)
	}
	t := newTarget(record)
	t.store.Replace(store)
	r, recovery, err := openOrInit(ctx, a.patient(t, n.Name), n)
	if err != nil {
		return AddedTarget{}, targetError(record, "open", err)
	}
	record.Encrypted, record.RepositoryID = r.Encrypted(), r.ID()
	t.repo, t.seen = r, time.Now()
	a.mu.Lock()
	a.targets[record.ID] = t // Before the catalog says that it is there.
	a.mu.Unlock()
	if err := a.rememberTarget(ctx, record, r, n); err != nil {
		a.forgetTarget(record.ID, t)
		r.Close() // Nothing was written; the first error says more.
		return AddedTarget{}, err
	}
	record, err = a.Target(ctx, record.ID.String())
	return AddedTarget{record, recovery}, err
}

// checkTarget refuses what cannot be a target before anything is touched.
func (a *Agent) checkTarget(n NewTarget) (catalog.Target, error) {
	if err := checkName("target", n.Name); err != nil {
		return catalog.Target{}, err
	}
	u, err := object.ParseURL(n.URL)
	if err != nil {
		return catalog.Target{}, fail(Invalid, "%w", err)
	}
	if n.NoEncryption == (n.Passphrase != "" || len(n.KeyFile) > 0) {
		return catalog.Target{}, fail(Invalid, "target %s needs either a passphrase or key file, or the explicit wish for no encryption", n.Name)
	}
	if n.Passphrase != "" && len(n.KeyFile) > 0 {
		return catalog.Target{}, fail(Invalid, "target %s: a passphrase and a key file were given: give one of them, the other can be added with target key add", n.Name)
	}
	record := catalog.Target{ID: layers.NewID(), Name: n.Name, URL: u.String(), Created: time.Now().UTC()}
	if err := errors.Join(checkCredentials(n.Name, n.Env), n.Settings.apply(&record)); err != nil {
		return catalog.Target{}, err
	}
	return record, a.view(func(tx *catalog.Tx) error { return a.targetIsNew(tx, record) })
}

// targetIsNew refuses a target whose name or repository there is already.
func (a *Agent) targetIsNew(tx *catalog.Tx, record catalog.Target) error {
	for _, t := range all(a, tx, catalog.Targets) {
		switch {
		case t.RepositoryID == record.RepositoryID:
			return fail(Conflict, "the repository there is target %s (%s) already: use that, or remove it first", t.Name, t.ID)
		case t.Name == record.Name:
			return fail(Conflict, "there is a target %s already (%s): choose another name", t.Name, t.ID)
		}
	}
	return nil
}

// openOrInit opens the repository in the store or, if there is none, makes it
// and returns its recovery key. One that is there must have been made for the
// compression that is asked for.
func openOrInit(ctx context.Context, store object.Store, n NewTarget) (r *repo.Repo, recovery string, err error) {
	compression, err := repo.ParseCompression(n.Compression)
	if err != nil {
		return nil, "", fail(Invalid, "%w", err)
	}
	p := repo.Params{NoEncryption: n.NoEncryption, Label: n.Name, Compression: compression}
	if !p.NoEncryption {
		p.Recovery = repo.NewRecoveryKey()
		recovery = p.Recovery.String()
	}
	r, made, err := repo.OpenOrInit(ctx, store, repo.Key{Passphrase: n.Passphrase, KeyFile: string(n.KeyFile)}, p)
	if !made {
		recovery = ""
	}
	if err != nil || made || compression == 0 || compression == r.Compression() {
		return r, recovery, err
	}
	r.Close() // Nothing was written.
	return nil, "", fail(Conflict, "there is a repository already, made for compression %v, and that does not change: leave out --compression here, and give it to varve backup create",
		r.Compression())
}

// rememberTarget keeps the secrets, then the record, then the list of backups.
func (a *Agent) rememberTarget(ctx context.Context, record catalog.Target, r *repo.Repo, n NewTarget) error {
	secret := secrets{Passphrase: n.Passphrase, KeyFile: n.KeyFile, Env: n.Env}
	if r.Encrypted() {
		secret.Slot = r.Slot().String()
	}
	if err := a.writeSecrets(record.ID, secret); err != nil {
		return fail(Unavailable, "keep the secrets of target %s: %w", record.Name, err)
	}
	err := a.update(func(tx *catalog.Tx) error {
		if err := a.targetIsNew(tx, record); err != nil {
			return err
		}
		return catalog.Targets.Put(tx, record)
	})
	if err == nil {
		if err = a.pull(ctx, record, r, everyRoot); err == nil {
			return nil
		}
		a.mu.Lock()
		a.targets[record.ID].removed = true
		a.mu.Unlock()
		err = errors.Join(err, a.dropTarget(record.ID))
	}
	return errors.Join(err, a.removeSecrets(record.ID))
}

// Targets returns every target, oldest first.
func (a *Agent) Targets(ctx context.Context) ([]catalog.Target, error) {
	return list(a, catalog.Targets)
}

// Target returns the target that ref, a name or an id, means.
func (a *Agent) Target(ctx context.Context, ref string) (catalog.Target, error) {
	records, err := list(a, catalog.Targets)
	if err != nil {
		return catalog.Target{}, err
	}
	return resolve("target", ref, records, func(t catalog.Target) named { return named{t.ID, t.Name, t.URL} })
}

// RemoveTarget forgets a target and its secrets. The backups stay in it.
func (a *Agent) RemoveTarget(ctx context.Context, ref string) error {
	record, err := a.Target(ctx, ref)
	if err != nil {
		return err
	}
	t := a.targetOf(record)
	if err := a.beginRemoval(record, t); err != nil {
		return err
	}
	a.endPoll(t)
	a.mu.Lock()
	users := t.users
	t.removed = users == 0
	r := t.repo
	a.mu.Unlock()
	if users > 0 {
		return fail(InUse, "target %s is being used by %d operations, exports or mounts: wait for them or end them", record.Name, users)
	}
	err = errors.Join(a.dropTarget(record.ID), a.removeSecrets(record.ID))
	a.mu.Lock()
	delete(a.targets, record.ID) // If something stays, it can be used or removed again.
	a.mu.Unlock()
	if r != nil {
		err = errors.Join(err, r.Close())
	}
	a.tidyAll() // The marks that its backups went by.
	return err
}

// beginRemoval keeps everybody from beginning to use a target.
func (a *Agent) beginRemoval(record catalog.Target, t *target) error {
	release, err := a.holdTarget(record) // which says whether it is gone already
	if err != nil {
		return err
	}
	release()
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.removed {
		return fail(Conflict, "target %s is being removed", record.Name)
	}
	t.removed = true
	return nil
}

// dropTarget takes a target out of the catalog: its backups, in portions that a
// transaction holds, then itself.
func (a *Agent) dropTarget(id layers.ID) error {
	const portion = 500
	for last := false; !last; {
		err := a.update(func(tx *catalog.Tx) error {
			n := 0
			last = false
			for _, b := range all(a, tx, catalog.Backups) {
				if b.TargetID != id {
					continue
				}
				if n++; n > portion {
					return nil
				}
				if err := catalog.Backups.Delete(tx, b.ID); err != nil {
					return err
				}
			}
			var readings []string
			tx.Readings(id, func(object string, _ time.Time) bool {
				readings = append(readings, object)
				return len(readings) < portion
			})
			if len(readings) > 0 {
				return tx.DropReadings(id, readings)
			}
			for _, c := range all(a, tx, catalog.Claims) {
				if c.TargetID != id {
					continue
				}
				if err := catalog.Claims.Delete(tx, c.ID); err != nil {
					return err
				}
			}
			last = true
			return catalog.Targets.Delete(tx, id)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// useTarget returns a target's repository, opened if it is not yet. It is not
// removed or closed before release is called.
func (a *Agent) useTarget(ctx context.Context, record catalog.Target) (r *repo.Repo, release func(), err error) {
	release, err = a.holdTarget(record)
	if err != nil {
		return nil, nil, err
	}
	r, err = a.openRepository(ctx, record)
	if err != nil {
		release()
		return nil, nil, targetError(record, "open", err)
	}
	return r, release, nil
}

// holdTarget keeps a target from being removed until release is called. The
// caller's record may be older than the target's removal: then it is an Error of
// reason Conflict.
func (a *Agent) holdTarget(record catalog.Target) (release func(), err error) {
	t := a.targetOf(record)
	switch _, err := a.targetRecord(record.ID); {
	case errors.Is(err, fs.ErrNotExist):
		a.forgetTarget(record.ID, t)
		return nil, fail(Conflict, "target %s was removed", record.Name)
	case err != nil:
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, errStopped // an operation that can goes on when the daemon is started
	case t.removed:
		return nil, fail(Conflict, "target %s is being removed", record.Name)
	}
	t.users++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		t.users--
	}, nil
}

// forgetTarget takes what is in memory of a target that is not in the catalog
// from the others, unless that is another by now.
func (a *Agent) forgetTarget(id layers.ID, t *target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.targets[id] == t {
		delete(a.targets, id)
	}
}

// openRepository opens a target's repository once.
func (a *Agent) openRepository(ctx context.Context, record catalog.Target) (*repo.Repo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	t := a.targetOf(record)
	if _, err := a.openStore(ctx, record); err != nil {
		return nil, err
	}
	if err := t.enter(ctx); err != nil {
		return nil, err
	}
	defer t.leave()
	a.mu.Lock()
	r, fresh := t.repo, time.Since(t.seen) < seenFresh
	a.mu.Unlock()
	if r != nil && fresh {
		return r, nil
	}
	if r != nil {
		err := r.Present(ctx)
		if errors.Is(err, repo.ErrAnother) {
			err = fail(Conflict, "%w: remove the target and add it again", err)
		}
		if err != nil {
			return nil, err
		}
		a.saw(t, r)
		return r, nil
	}
	secret, err := a.readSecrets(record.ID)
	if err != nil {
		return nil, err
	}
	r, err = repo.Open(ctx, a.patient(t, record.Name), secret.key())
	if errors.Is(err, repo.ErrKey) {
		return nil, fmt.Errorf("%w; if it was rotated elsewhere, target key use %s tells the daemon the new one", err, record.Name)
	}
	if err != nil {
		return nil, err
	}
	if r.ID() != record.RepositoryID {
		r.Close() // Nothing was written.
		return nil, anotherRepository(r, record)
	}
	a.saw(t, r)
	return r, nil
}

// saw remembers that a target's repository was there a moment ago.
func (a *Agent) saw(t *target, r *repo.Repo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t.repo, t.seen = r, time.Now()
}

func anotherRepository(r *repo.Repo, t catalog.Target) error {
	return fail(Conflict, "another repository is there now, %s instead of %s: remove the target and add it again", r.ID(), t.RepositoryID)
}

// openStore opens a target's store once.
func (a *Agent) openStore(ctx context.Context, record catalog.Target) (object.Store, error) {
	t := a.targetOf(record)
	if err := t.enter(ctx); err != nil {
		return nil, err
	}
	defer t.leave()
	if !t.store.Empty() {
		return &t.store, nil
	}
	secret, err := a.readSecrets(record.ID)
	if err != nil {
		return nil, err
	}
	store, err := a.config.OpenStore(ctx, placeOf(record, secret.Env))
	if err != nil {
		return nil, err
	}
	t.store.Replace(store)
	return &t.store, nil
}

func (t *target) enter(ctx context.Context) error {
	select {
	case t.opening <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *target) leave() { <-t.opening }

// probe reports whether a target answers.
func (a *Agent) probe(ctx context.Context, record catalog.Target) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	store, err := a.openStore(ctx, record)
	if err != nil {
		return err
	}
	for _, err := range store.List(ctx, "repo") {
		return err
	}
	return errors.New("it answers, but holds no repository any more")
}

// closeTargets closes every open repository.
func (a *Agent) closeTargets() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, t := range a.targets {
		if t.repo != nil {
			errs = append(errs, t.repo.Close())
			t.repo = nil
		}
	}
	return errors.Join(errs...)
}

// patient is how the agent uses every store.
func (a *Agent) patient(t *target, name string) object.Store {
	return object.Retry(t.gate.Store(&t.store), a.retryPolicy(name))
}

// retryPolicy is the usual one, and logs each failure.
func (a *Agent) retryPolicy(target string) object.Policy {
	policy := a.config.Retry
	policy.Notify = func(failure error, try int, pause time.Duration) {
		a.log.Info("a target did not do what was asked: it is asked again", "target", target, "error", failure, "try", try, "pause", pause)
	}
	return policy
}
