package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A guest makes requests at a rate, and at less beside work and for some time
// after it.
type guest struct {
	rate, loss float64
	after      time.Duration
	made       float64
	at         time.Time
	beside     bool
	hurt       time.Time // until when work that has ended hurts
}

func (g *guest) requests() int64 {
	now := time.Now()
	hurt := time.Duration(0)
	if g.beside {
		hurt = now.Sub(g.at)
	} else if g.hurt.After(g.at) {
		hurt = min(now.Sub(g.at), g.hurt.Sub(g.at))
	}
	g.made += (now.Sub(g.at).Seconds() - hurt.Seconds()*g.loss) * g.rate
	g.at = now
	return int64(g.made)
}

// A1: guests that work hurts lose no more than what is allowed, and where it
// hurts nobody it goes on nearly all the time.
func TestCourtesy(t *testing.T) {
	for _, c := range []struct {
		name             string
		rate, loss       float64
		after            time.Duration // it is hurt after the work
		served           float64       // the least share of the guest's requests
		worked, workedAt float64       // the least and the most share of the time
	}{
		{"nobody", 0, 0, 0, 0, 0.9, 1},
		{"nobody is hurt", 20000, 0, 0, 0.99, 0.9, 1},
		{"hurt a little", 20000, 0.10, 0, 0.88, 0.75, 1},
		{"by the processor", 40000, 0.4, 0, 0.85, 0.18, 0.4},
		{"by the disk", 20000, 0.9, 0, 0.83, 0.06, 0.2},
		{"by what the work leaves behind", 20000, 0.5, 60 * time.Millisecond, 0.85, 0.06, 0.25},
		{"for long", 20000, 0.9, 150 * time.Millisecond, 0.8, 0.05, 0.2},
		{"one that hardly does anything", 5, 0.9, 0, 0, 0.8, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &guest{rate: c.rate, loss: c.loss, after: c.after, at: time.Now()}
				manners := &courtesy{requests: g.requests}
				time.Sleep(time.Second) // The guest was there before.
				const span = time.Minute
				began, worked, before := time.Now(), time.Duration(0), g.requests()
				for time.Since(began) < span {
					end := must(manners.turn(t.Context()))(t)
					g.requests()
					g.beside = true
					time.Sleep(2 * time.Millisecond)
					worked += 2 * time.Millisecond
					g.requests()
					g.beside, g.hurt = false, time.Now().Add(g.after)
					end()
				}
				if served := float64(g.requests()-before) / (c.rate * span.Seconds()); c.rate > 0 && served < c.served {
					t.Errorf("the guest got %.2f of its requests, want %.2f", served, c.served)
				}
				if share := worked.Seconds() / time.Since(began).Seconds(); share < c.worked || share > c.workedAt {
					t.Errorf("work had %.2f of the time, want %.2f to %.2f", share, c.worked, c.workedAt)
				}
			})
		})
	}
}

// A guest that wants less than before, and loses nothing by the work, does not
// hold it up for long.
func TestCourtesyOfASlowerGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &guest{rate: 20000, at: time.Now()}
		manners := &courtesy{requests: g.requests}
		time.Sleep(time.Second)
		worked := time.Duration(0)
		piece := func() {
			end := must(manners.turn(t.Context()))(t)
			time.Sleep(2 * time.Millisecond)
			worked += 2 * time.Millisecond
			end()
		}
		for worked < 10*time.Second {
			piece()
		}
		g.requests()
		g.rate /= 4
		began, before := time.Now(), worked
		for time.Since(began) < 20*time.Second {
			piece()
		}
		if share := (worked - before).Seconds() / time.Since(began).Seconds(); share < 0.75 {
			t.Errorf("work had %.2f of the time, want 0.75 at least", share)
		}
	})
}

// Whoever waits for a turn can be canceled, and a piece of work that hangs does
// not make the others wait for ever.
func TestCourtesyDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &guest{rate: 20000, at: time.Now()}
		manners := &courtesy{requests: g.requests}
		must(manners.turn(t.Context()))(t) // and does not end
		time.Sleep(2 * workWindow)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Millisecond, func() { cancel(errCanceled) })
		if _, err := manners.turn(ctx); !errors.Is(err, errCanceled) {
			t.Errorf("canceled: %v", err)
		}
		must(manners.turn(t.Context()))(t)()
	})
}
