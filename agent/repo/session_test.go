package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// slow is a source whose reads take as long as sleep says, one after the other:
// how many workers a backup has does not matter then.
type slow struct {
	layers.Layer
	sleep time.Duration
	turn  chan struct{}
}

// slowly returns a slow source, of the bubble that it is called in.
func slowly(l layers.Layer, sleep time.Duration) slow { return slow{l, sleep, make(chan struct{}, 1)} }

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	s.turn <- struct{}{}
	time.Sleep(s.sleep)
	<-s.turn
	return s.Layer.ReadAt(p, off)
}

func sessionsIn(t *testing.T, s object.Store) (names []string) {
	for name := range contents(t, s) {
		if strings.HasPrefix(name, sessionRoot) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// showSession writes a session as a backup of that volume does that takes long.
func showSession(t testing.TB, r *Repo, volume layers.ID) {
	t.Helper()
	j := &Job{ID: layers.NewID(), Volume: volume}
	w := &writer{repo: r, job: j, ledger: newLedger(j), root: &root{name: rootName{volume, 1, 1, j.ID}}}
	s := newSession(w, nil, "", 0)
	if err := s.write(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSessionIsRenewedAndSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		v := newVolume(4 << 20)
		v.write(0, bytes.Repeat([]byte("data"), 1<<20))
		first := layers.NewID()
		// 1024 blocks, each a read, and 31 times 4 that are looked at again: two hours.
		_, err := r.Create(t.Context(), Job{ID: first, Volume: v.id, Source: slowly(v.source(), 6*time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		sessions := sessionsIn(t, store)
		if len(sessions) < 3 || sessions[0] != sessionName(first, 0) || sessions[1] != sessionName(first, 1) {
			t.Errorf("sessions of a slow backup: %q", sessions)
		}
		b := contents(t, store)[sessions[1]]
		f, err := r.openBody(b, kindSession)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := f.id(bodyBackup); id != first || err != nil || !strings.HasSuffix(f.text(bodyRoot), first.String()) {
			t.Errorf("a session of backup %s, root %s, %v", id, f.text(bodyRoot), err)
		}

		time.Sleep(30 * time.Minute) // too soon
		short := Job{ID: layers.NewID(), Volume: v.id, Source: slowly(v.source(), 100*time.Millisecond)}
		if _, err := r.Create(t.Context(), short); err != nil {
			t.Fatal(err)
		}
		if left := sessionsIn(t, store); !slices.Equal(left, sessions) {
			t.Errorf("after a backup of seconds: sessions %q, want those before, %q", left, sessions)
		}
		long := func() Job {
			return Job{ID: layers.NewID(), Volume: v.id, Source: slowly(v.source(), 500*time.Millisecond)}
		}
		if _, err := r.Create(t.Context(), long()); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(sessionsIn(t, store), sessions[0]) {
			t.Error("a session went half an hour after its root")
		}
		time.Sleep(2 * time.Hour)
		if err := store.Put(t.Context(), sessionName(layers.NewID(), 0), b); err != nil { // of a backup that still runs
			t.Fatal(err)
		}
		if _, err := r.Create(t.Context(), long()); err != nil {
			t.Fatal(err)
		}
		if left := sessionsIn(t, store); len(left) != 2 {
			t.Errorf("two hours later these sessions are left: %q; want the running one and the last", left)
		}
	})
}

func TestBackupWithoutARenewedSessionStops(t *testing.T) {
	// The store takes no sessions for longer than pruning waits.
	synctest.Test(t, func(t *testing.T) {
		var renewals atomic.Int32
		hook := &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
			if op == "put" && strings.HasPrefix(name, sessionRoot) {
				if renewals.Add(1) > 1 {
					return io.ErrUnexpectedEOF
				}
			}
			return nil
		}}
		r := testRepo(t, hook, true)
		v := newVolume(1 << 20)
		v.write(0, bytes.Repeat([]byte("data"), 1<<18))
		id := layers.NewID()
		_, err := r.Create(t.Context(), Job{ID: id, Volume: v.id, Source: slowly(v.source(), time.Hour)})
		if err == nil || !strings.Contains(err.Error(), "session") {
			t.Fatalf("a backup of days without a session: %v", err)
		}
		for name := range contents(t, hook.Store) {
			if strings.HasPrefix(name, "p/") || strings.Contains(name, "/b/") {
				t.Errorf("%s is left", name)
			}
		}
	})
}

func TestSessionNumbersGoOn(t *testing.T) {
	// The same backup tried again never writes a name twice.
	store := object.NewMem()
	var mu sync.Mutex
	puts := make(map[string]int)
	fail := true
	hook := &objecttest.Hook{Store: store, Before: func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "put" {
			puts[name]++
		}
		if fail && (op == "delete" || op == "put" && strings.Contains(name, "/b/")) {
			return errStopped
		}
		return nil
	}}
	r := testRepo(t, hook, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("data"))
	j := Job{ID: layers.NewID(), Volume: v.id, Source: v.source()}
	if _, err := r.Create(context.Background(), j); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	fail = false
	if _, err := r.Create(context.Background(), j); err != nil {
		t.Fatal(err)
	}
	for name, n := range puts {
		if n > 1 && !strings.Contains(name, "/b/") { // the root never came to be
			t.Errorf("%s was put %d times", name, n)
		}
	}
	compare(t, r, j.ID, v.bytes)
}

func TestProgressReachesItsTotal(t *testing.T) {
	r := testRepo(t, object.NewMem(), false)
	v := newVolume(3 << 20)
	v.write(5000, bytes.Repeat([]byte("data"), 1<<18))
	track := func(what string, want int64) func(done, total int64) {
		last := int64(-1)
		t.Cleanup(func() {
			if last != want {
				t.Errorf("%s: progress ended at %d, want %d", what, last, want)
			}
		})
		return func(done, total int64) {
			if done < last || done > total || total != want {
				t.Errorf("%s: %d of %d after %d, want %d in all", what, done, total, last, want)
			}
			last = done
		}
	}
	source, data := v.source(), int64(0)
	for e := range source.Extents(0, source.Size()) {
		data += e.Len
	}
	b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: v.id, Source: source, Progress: track("create", data)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(t.Context(), b.ID, newDisk(3<<20), RestoreOptions{Progress: track("restore", 3<<20)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Verify(t.Context(), b.ID, VerifyOptions{Level: Deep, Progress: track("verify", 3<<20)}); err != nil {
		t.Fatal(err)
	}
}
