package agent

import (
	"context"
	"time"

	"varve/agent/repo"
	"varve/catalog"
)

const (
	// minVerifyEvery keeps a target from being read all the time.
	minVerifyEvery = time.Hour
	// usualVerifyRate is what verifying without being asked reads in a second:
	// a tebibyte takes fifteen hours.
	usualVerifyRate = 20 << 20
	// verifyTick is how often it is looked which targets are due.
	verifyTick = 10 * time.Minute
	// verifyAgain is how long after one that did not come to its end the next
	// is begun.
	verifyAgain = 24 * time.Hour
)

// verifyTargets verifies the targets that ask for it when they are due, until
// ctx ends.
func (a *Agent) verifyTargets(ctx context.Context) {
	tick := time.NewTicker(verifyTick)
	defer tick.Stop()
	for {
		a.verifyDue(time.Now().UTC())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// verifyDue begins to verify the targets that are due.
func (a *Agent) verifyDue(now time.Time) {
	targets, err := list(a, catalog.Targets)
	if err != nil {
		a.log.Error("it cannot be seen which targets are to be verified", "error", err)
		return
	}
	for _, t := range targets {
		if !verificationDue(t, now) {
			continue
		}
		// What was read in the first half of the time is read again in the
		// second, so that nothing is ever read longer ago than the whole.
		v := &verification{
			a: a, target: t, Level: repo.Deep.String(), Rate: t.VerifyRate, Since: now.Add(-t.VerifyEvery / 2), Quiet: true,
		}
		if v.Rate == 0 {
			v.Rate = usualVerifyRate
		}
		if _, err := v.begin(); err != nil && ReasonOf(err) != Conflict && ReasonOf(err) != Stopped {
			a.log.Error("a target cannot be verified", "target", t.Name, "error", err)
		}
	}
}

// verificationDue reports whether a target is to be verified now: half of its
// time after that was last begun, or a day after if it did not come to its end.
func verificationDue(t catalog.Target, now time.Time) bool {
	if t.VerifyEvery == 0 {
		return false
	}
	pause := t.VerifyEvery / 2
	if t.Verified.Ended.Before(t.VerifyBegun) {
		pause = min(pause, verifyAgain)
	}
	return now.Sub(t.VerifyBegun) >= pause
}
