package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A guest makes requests at a rate, and at less beside work.
type guest struct {
	rate, loss float64
	made       float64
	at         time.Time
	beside     bool
}

func (g *guest) requests() int64 {
	now := time.Now()
	share := 1.0
	if g.beside {
		share -= g.loss
	}
	g.made += now.Sub(g.at).Seconds() * g.rate * share
	g.at = now
	return int64(g.made)
}

// A1: guests that work hurts lose no more than what is allowed, and where it
// hurts nobody it goes on nearly all the time.
func TestCourtesy(t *testing.T) {
	for _, c := range []struct {
		name             string
		rate, loss       float64
		served           float64 // the least share of the guest's requests
		worked, workedAt float64 // the least and the most share of the time
	}{
		{"nobody", 0, 0, 0, 0.9, 1},
		{"nobody is hurt", 20000, 0, 0.99, 0.9, 1},
		{"hurt a little", 20000, 0.10, 0.88, 0.75, 1},
		{"by the processor", 40000, 0.4, 0.85, 0.2, 0.4},
		{"by the disk", 20000, 0.9, 0.83, 0.06, 0.2},
		{"one that hardly does anything", 5, 0.9, 0, 0.8, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &guest{rate: c.rate, loss: c.loss, at: time.Now()}
				manners := &courtesy{requests: g.requests}
				const span = time.Minute
				began, worked := time.Now(), time.Duration(0)
				for time.Since(began) < span {
					end := must(manners.turn(t.Context()))(t)
					g.requests()
					g.beside = true
					time.Sleep(2 * time.Millisecond)
					worked += 2 * time.Millisecond
					g.requests()
					g.beside = false
					end()
				}
				if served := float64(g.requests()) / (c.rate * span.Seconds()); c.rate > 0 && served < c.served {
					t.Errorf("the guest got %.2f of its requests, want %.2f", served, c.served)
				}
				if share := worked.Seconds() / time.Since(began).Seconds(); share < c.worked || share > c.workedAt {
					t.Errorf("work had %.2f of the time, want %.2f to %.2f", share, c.worked, c.workedAt)
				}
			})
		})
	}
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
