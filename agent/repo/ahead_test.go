package repo

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// listed lists the backups, and returns how many there are and how many requests
// waited for one another.
func listed(t *testing.T, r *Repo) (count int, trips time.Duration) {
	t.Helper()
	began := time.Now()
	for _, err := range r.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	return count, time.Since(began) / time.Second
}

// Whoever opens a repository to list its backups waits for two requests, and for
// none when he does; each answer is given once, and not when it is old.
func TestOpenToList(t *testing.T) {
	s := newSample(t, true)
	for _, test := range []struct {
		name  string
		pause time.Duration // between opening and listing
		want  time.Duration // requests of the first list that wait for one another
	}{{"at once", 0, 0}, {"later", aheadFor, 1}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := distant(t, s)
				began := time.Now()
				r, err := OpenToList(t.Context(), c, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if got := time.Since(began) / time.Second; got != 2 { // head, slot
					t.Errorf("opening takes %d requests after one another, want 2: %q", got, c.take())
				}
				time.Sleep(test.pause)
				c.take()
				count, trips := listed(t, r)
				if count < 2 || trips != test.want {
					t.Errorf("%d backups after %d requests, want %d: %q", count, trips, test.want, c.take())
				}
				if again, trips := listed(t, r); again != count || trips != 2 { // names; roots
					t.Errorf("then %d backups after %d requests, want %d after 2: %q", again, trips, count, c.take())
				}
			})
		})
	}
}

// What could not be read ahead is asked for when it is wanted.
func TestAheadFails(t *testing.T) {
	s := newSample(t, true)
	for _, op := range []string{"list", "get"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := distant(t, s)
				note := c.Before
				var refused, opened atomic.Bool
				c.Before = func(does, name string) error {
					_, named := parseVolumeName(name)
					if !opened.Load() && does == op && (named || op == "list") {
						refused.Store(true)
						return errors.New("not now")
					}
					return note(does, name)
				}
				r, err := OpenToList(t.Context(), c, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				synctest.Wait()
				if opened.Store(true); !refused.Load() {
					t.Fatal("nothing was asked for ahead")
				}
				if count, _ := listed(t, r); count < 2 {
					t.Errorf("%d backups", count)
				}
			})
		})
	}
}

// A wrong passphrase is told as ever, and ends what was asked for ahead.
func TestOpenToListRefuses(t *testing.T) {
	s := newSample(t, true)
	synctest.Test(t, func(t *testing.T) {
		if _, err := OpenToList(t.Context(), distant(t, s), Key{Passphrase: "another"}); !errors.Is(err, ErrKey) {
			t.Errorf("%v, want ErrKey", err)
		}
	})
}
