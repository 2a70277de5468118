package repo

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// C5: hosts that make a repository in one place at once, each request taking a
// time of its own, all end with the same one, and leave nothing beside it.
func TestManyHostsInit(t *testing.T) {
	rnd := newRand(t) // outside the bubbles, where it is always the same time
	for round := range 40 {
		synctest.Test(t, func(t *testing.T) {
			mem := object.NewMem()
			var mu sync.Mutex
			pause := func(string, string) error {
				mu.Lock()
				d := time.Duration(rnd.IntN(40)) * time.Millisecond
				mu.Unlock()
				time.Sleep(d)
				return nil
			}
			slow := &objecttest.Hook{Store: mem, Before: pause, After: pause}
			ids := map[layers.ID]int{}
			makers := 0
			var all sync.WaitGroup
			for range 2 + round%4 {
				all.Go(func() {
					r, made, err := OpenOrInit(t.Context(), slow, Key{}, Params{NoEncryption: true})
					if err != nil {
						t.Error(err)
						return
					}
					defer r.Close()
					mu.Lock()
					defer mu.Unlock()
					ids[r.ID()]++
					if made {
						makers++
					}
				})
			}
			all.Wait()
			if len(ids) != 1 || makers != 1 {
				t.Errorf("%d hosts made %d repositories", makers, len(ids))
			}
			if left := contents(t, mem); len(left) != 1 {
				t.Errorf("%d objects are left, want the head", len(left))
			}
		})
	}
}

// What a crashed host has left is in nobody's way after ten minutes, and until
// then the refusal says what it is.
func TestInitAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := object.NewMem()
		if err := mem.Put(t.Context(), initRoot+layers.NewID().String(), nil); err != nil {
			t.Fatal(err)
		}
		_, _, err := OpenOrInit(t.Context(), mem, Key{}, Params{NoEncryption: true})
		if !errors.Is(err, ErrExists) || len(fmt.Sprint(err)) > 300 {
			t.Errorf("beside a fresh claim: %v", err)
		}
		time.Sleep(11 * time.Minute)
		r, made, err := OpenOrInit(t.Context(), mem, Key{}, Params{NoEncryption: true})
		if err != nil || !made {
			t.Fatalf("beside a dead claim: %v", err)
		}
		defer r.Close()
		for _, left := range []int{2, 1} { // objects: the claim goes when no listing lags so much
			prunes(t, r, PruneOptions{})
			if got := contents(t, mem); len(got) != left {
				t.Errorf("%d objects are left, want %d", len(got), left)
			}
			time.Sleep(2 * time.Hour)
		}
	})
}
