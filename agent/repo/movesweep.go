package repo

import (
	"context"
	"slices"
)

// sweepMoves removes relocations: those for which another one stands that every
// reader finds, and those that lead nowhere any more.
func (p *prune) sweepMoves(ctx context.Context) error {
	if p.options.DryRun {
		return nil
	}
	for _, v := range p.places {
		if v.err != nil {
			continue
		}
		var names []string
		for _, o := range v.objects {
			idle, err := p.idle(ctx, v, o)
			if err != nil {
				return err
			}
			if idle {
				names = append(names, o.name)
			}
		}
		if err := p.remove(ctx, names); err != nil {
			return err
		}
		for _, o := range v.objects {
			if slices.Contains(names, o.name) && !p.retained[o.name] {
				p.report.Freed.add(o.size)
			}
		}
	}
	return nil
}

// idle reports whether nobody needs a relocation.
func (p *prune) idle(ctx context.Context, v *volumePlaces, o *moveObject) (bool, error) {
	if !v.old[o] {
		return false, nil
	}
	if v.replaced[o] && v.covers(o) {
		return true, nil
	}
	for i := range o.objects {
		if there, err := p.there(ctx, inData, o.objects[i].id); err != nil || there {
			return false, err
		}
	}
	return true, nil
}

// covers reports whether relocations that stay, and that every reader finds, say
// all that is needed of what o says.
func (v *volumePlaces) covers(o *moveObject) bool {
	var stays []*moveObject
	found := false
	for _, other := range v.objects {
		if !v.old[other] || v.replaced[other] {
			continue
		}
		stays = append(stays, other)
		found = found || slices.Contains(other.replaces, o.id)
	}
	if !found {
		return false
	}
	for name := range o.names() {
		if _, ok := firstPlace(stays, name); !ok && v.needs(name) {
			return false
		}
	}
	return true
}
