package main

import (
	"fmt"

	"varve/agent"
	"varve/agent/repo"
)

// A pastDamage gathers what a restore without a daemon could not restore, if
// the person wants all else (--allow-damaged).
type pastDamage struct {
	*call
	first error
	lost  []repo.Range
	limit int // of lost, before ranges that meet are joined
}

func (p *pastDamage) asked() bool { return p.Bool("allow-damaged") }

// option is what a restore tells losses to; nil: it is to stop at the first.
func (p *pastDamage) option() func(repo.Loss) error {
	if !p.asked() {
		return nil
	}
	return p.take
}

func (p *pastDamage) take(l repo.Loss) error {
	if p.first == nil {
		p.first = l.Err
	}
	p.lost = append(p.lost, l.Range)
	if len(p.lost) > p.limit {
		p.lost = repo.JoinRanges(p.lost)
		p.limit = 2*len(p.lost) + 1<<10
	}
	return nil
}

// tell prints a line for each range that is lost, and is an error if any is.
func (p *pastDamage) tell() error {
	if len(p.lost) == 0 {
		return nil
	}
	p.lost = repo.JoinRanges(p.lost)
	total := int64(0)
	for _, r := range p.lost {
		tellRange(p.stderr, r.Off, r.Len)
		total += r.Len
	}
	return &agent.Error{Reason: agent.Corrupt, Message: fmt.Sprintf(
		"backup restore: %d bytes in %d ranges are lost and read as zeros there, all else is restored; the first damage is: %v", total, len(p.lost), p.first)}
}
