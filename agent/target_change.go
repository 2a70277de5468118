package agent

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
)

// TargetSettings say what of a target's settings to change; nil leaves as it is.
type TargetSettings struct {
	MaxUpload   *int64 // bytes a second; 0: no limit
	MaxDownload *int64
	MaxRequests *int64 // a second; 0: no limit
	CAFile      *string
	Proxy       *string
	VerifyEvery *time.Duration // 0: never without being asked
	VerifyRate  *int64         // bytes a second; 0: the default
}

// apply changes a record.
func (c TargetSettings) apply(t *catalog.Target) error {
	for _, n := range []struct{ from, to *int64 }{
		{c.MaxUpload, &t.MaxUpload}, {c.MaxDownload, &t.MaxDownload}, {c.MaxRequests, &t.MaxRequests},
	} {
		if n.from != nil {
			*n.to = *n.from
		}
	}
	for _, text := range []struct{ from, to *string }{{c.CAFile, &t.CAFile}, {c.Proxy, &t.Proxy}} {
		if text.from != nil {
			*text.to = *text.from
		}
	}
	if c.VerifyEvery != nil {
		t.VerifyEvery = *c.VerifyEvery
	}
	if c.VerifyRate != nil {
		t.VerifyRate = *c.VerifyRate
	}
	if t.VerifyEvery != 0 && t.VerifyEvery < minVerifyEvery || t.VerifyRate < 0 {
		return fail(Invalid, "target %s: everything can be read within %s or more, not %s", t.Name, minVerifyEvery, t.VerifyEvery)
	}
	if err := ratesOf(*t).Check(); err != nil {
		return fail(Invalid, "target %s: %w", t.Name, err)
	}
	if t.CAFile != "" && !filepath.IsAbs(t.CAFile) {
		return fail(Invalid, "target %s: the file of certificate authorities %q is not an absolute path", t.Name, t.CAFile)
	}
	if err := object.CheckProxy(t.Proxy); err != nil {
		return fail(Invalid, "target %s: %w", t.Name, err)
	}
	return nil
}

func ratesOf(t catalog.Target) object.Rates {
	return object.Rates{Upload: t.MaxUpload, Download: t.MaxDownload, Requests: t.MaxRequests}
}

// placeOf is where a target's store is, to who has these credentials.
func placeOf(t catalog.Target, env map[string]string) Place {
	return Place{URL: t.URL, Env: env, CAFile: t.CAFile, Proxy: t.Proxy}
}

// ChangeTarget changes how a target is used. Rates hold at once, for what is under way too. New
// credentials (nil: the old ones), another proxy or another authority are tried
// first: they must lead to the same repository.
func (a *Agent) ChangeTarget(ctx context.Context, ref string, c TargetSettings, env map[string]string) (catalog.Target, error) {
	record, err := a.Target(ctx, ref)
	if err != nil {
		return catalog.Target{}, err
	}
	release, err := a.holdTarget(record)
	if err != nil {
		return catalog.Target{}, err
	}
	defer release()
	t := a.targetOf(record)
	if err := t.enter(ctx); err != nil {
		return catalog.Target{}, err
	}
	defer t.leave()
	if err := checkCredentials(record.Name, env); err != nil {
		return catalog.Target{}, err
	}
	changed := record
	if err := c.apply(&changed); err != nil {
		return catalog.Target{}, err
	}
	if env != nil || changed.CAFile != record.CAFile || changed.Proxy != record.Proxy {
		if err := a.changeWay(ctx, t, changed, env); err != nil {
			return catalog.Target{}, targetError(changed, "change the way to", err)
		}
	}
	err = a.update(func(tx *catalog.Tx) error {
		if changed, err = catalog.Targets.Get(tx, record.ID); err != nil {
			return err
		}
		return errors.Join(c.apply(&changed), catalog.Targets.Put(tx, changed))
	})
	if err != nil {
		return catalog.Target{}, err
	}
	t.gate.SetRates(ratesOf(changed))
	return changed, nil
}

// changeWay opens a target's store anew, and from then on all who use the
// target use that. The target is entered.
func (a *Agent) changeWay(ctx context.Context, t *target, record catalog.Target, env map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	secret, err := a.readSecrets(record.ID)
	if err != nil {
		return err
	}
	if env != nil {
		secret.Env = env
	}
	store, err := a.config.OpenStore(ctx, placeOf(record, secret.Env))
	if err != nil {
		return err
	}
	r, err := repo.Open(ctx, object.Retry(t.gate.Store(store), a.retryPolicy(record.Name)), secret.key())
	if err != nil {
		return err
	}
	defer r.Close() // nothing was written
	if r.ID() != record.RepositoryID {
		return fail(Conflict, "it leads to another repository, %s instead of %s: add that as a target of its own", r.ID(), record.RepositoryID)
	}
	if env != nil {
		if err := a.writeSecrets(record.ID, secret); err != nil {
			return fail(Unavailable, "keep the secrets of target %s: %w", record.Name, err)
		}
	}
	t.store.Replace(store)
	return nil
}

// credentialNames are the beginnings of the names of what a target may log in
// with, and the variables that say how to get there.
var credentialNames = []string{"OS_", "ST_", "AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

func checkCredentials(target string, env map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !slices.ContainsFunc(credentialNames, func(p string) bool { return strings.HasPrefix(name, p) }) {
			return fail(Invalid, "target %s: %q is no credential: names begin with OS_, ST_ or AWS_", target, name)
		}
	}
	return nil
}

// targetOf returns what is in memory of a target.
func (a *Agent) targetOf(record catalog.Target) *target {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.targets[record.ID]
	if t == nil {
		t = newTarget(record)
		a.targets[record.ID] = t
	}
	return t
}
