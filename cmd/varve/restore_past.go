package main

import (
	"cmp"
	"fmt"
	"slices"

	"varve/agent"
	"varve/agent/repo"
)

// A pastDamage gathers what a restore without a daemon could not restore, if
// the person wants all else (--allow-damaged).
type pastDamage struct {
	*call
	lost []repo.Loss
}

func (p *pastDamage) asked() bool { return p.Bool("allow-damaged") }

// option is what a restore tells losses to; nil: it is to stop at the first.
func (p *pastDamage) option() func(repo.Loss) error {
	if !p.asked() {
		return nil
	}
	return func(l repo.Loss) error {
		p.lost = append(p.lost, l)
		return nil
	}
}

// tell prints a line for each range that is lost, and is an error if any is.
func (p *pastDamage) tell() error {
	if len(p.lost) == 0 {
		return nil
	}
	first := p.lost[0].Err
	slices.SortFunc(p.lost, func(a, b repo.Loss) int { return cmp.Compare(a.Off, b.Off) })
	off, end, total, count := p.lost[0].Off, p.lost[0].Off, int64(0), 0
	put := func() {
		tellRange(p.stderr, off, end-off)
		total += end - off
		count++
	}
	for _, l := range p.lost {
		if l.Off > end {
			put()
			off = l.Off
		}
		end = max(end, l.Off+l.Len)
	}
	put()
	return &agent.Error{Reason: agent.Corrupt, Message: fmt.Sprintf(
		"backup restore: %d bytes in %d ranges are lost and read as zeros there, all else is restored; the first damage is: %v", total, count, first)}
}
