package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// initRoot is in front of the claims of hosts that make a repository.
const initRoot = "init/"

// claimDead is the age, by the store's clock, of a claim that a crash left.
const claimDead = 10 * time.Minute

// claimPatience is how long a host waits for another that makes a repository.
const claimPatience = 10 * time.Second

// claimInit keeps other hosts from making a repository in the store until give
// is called, where listings are up to date. A host writes its claim, and then
// looks for others' and for the head. Of two that claim at once, the later to
// write sees the other's claim or, if that has been given back, its head. So at
// most one goes on; of several that see each other the first by ID does, when
// the others have given up. ErrExists: another host was quicker, or is about to
// be.
func claimInit(ctx context.Context, s object.Store, id layers.ID) (give func(), err error) {
	mine := initRoot + id.String()
	if err := s.Put(ctx, mine, nil); err != nil {
		return nil, fmt.Errorf("write claim: %w", err)
	}
	give = func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer stop()
		s.Delete(ctx, mine) // else it is dead in ten minutes
	}
	for begun := time.Now(); ; {
		rival, err := findRival(ctx, s, mine)
		if err == nil && rival == "" {
			if err = refuseUsed(ctx, s); err == nil {
				return give, nil
			}
		}
		if err == nil && (rival < mine || time.Since(begun) > claimPatience) {
			err = fmt.Errorf("%w: another host makes a repository there at this moment (%s); try again when it has", ErrExists, rival)
		}
		if err != nil {
			give()
			return nil, err
		}
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			give()
			return nil, ctx.Err()
		}
	}
}

// findRival returns the first claim of another host that may be alive.
func findRival(ctx context.Context, s object.Store, mine string) (string, error) {
	claims := map[string]time.Time{}
	newest := time.Time{}
	for info, err := range s.List(ctx, initRoot) {
		if err != nil {
			return "", fmt.Errorf("look for claims: %w", err)
		}
		claims[info.Name] = info.Modified
		if info.Modified.After(newest) {
			newest = info.Modified
		}
	}
	rival := ""
	for name, at := range claims {
		if _, err := layers.ParseID(strings.TrimPrefix(name, initRoot)); err != nil || name == mine || newest.Sub(at) > claimDead {
			continue
		}
		if rival == "" || name < rival {
			rival = name
		}
	}
	return rival, nil
}

// removeClaims removes the claims that crashes left: the repository was made by
// somebody else meanwhile.
func (p *prune) removeClaims(ctx context.Context) error {
	var names []string
	for info, err := range p.repo.store.List(ctx, initRoot) {
		if err != nil {
			return fmt.Errorf("list claims: %w", err)
		}
		_, err := layers.ParseID(strings.TrimPrefix(info.Name, initRoot))
		if err == nil && p.age(info.Modified) > claimDead+sessionAfter {
			names = append(names, info.Name)
		}
	}
	return p.remove(ctx, names)
}

// OpenOrInit opens the repository in the store, or makes one if there is none.
// made says which it was; where another host makes it at the same time, that
// one is opened.
func OpenOrInit(ctx context.Context, s object.Store, k Key, p Params) (r *Repo, made bool, err error) {
	for begun := time.Now(); ; {
		r, err = Open(ctx, s, k)
		if !errors.Is(err, ErrNoRepository) {
			return r, false, err
		}
		r, err = Init(ctx, s, k, p)
		if !errors.Is(err, ErrExists) || time.Since(begun) > claimPatience {
			return r, err == nil, err
		}
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, false, ctx.Err()
		}
	}
}
