package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
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

// images returns what each backup of a sample holds.
func (s *sample) images(t testing.TB, key Key) map[layers.ID][]byte {
	t.Helper()
	r, err := Open(t.Context(), storeOf(t, s.objects), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	images := make(map[layers.ID][]byte)
	for _, id := range s.ids {
		b, err := r.Backup(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		d := newDisk(int(b.Size))
		if err := r.Restore(t.Context(), id, d, RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		images[id] = d.bytes
	}
	return images
}

// delete leaves the tombstones of two more backups.
func (s *sample) delete(t testing.TB, key Key) {
	t.Helper()
	store := storeOf(t, s.objects)
	r, err := Open(t.Context(), store, key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		b, err := s.volume.backup(t.Context(), r, s.last)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Delete(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range contents(t, store) {
		if kindInVolume(name) == "d" {
			s.objects[name] = b // pruned of all else
		}
	}
}

// unreadable returns the blocks of a backup that cannot be read, and fails if
// one that can is not what it was.
func unreadable(t testing.TB, r *Repo, id layers.ID, image []byte) map[int64]bool {
	t.Helper()
	lost := make(map[int64]bool)
	l, err := r.Layer(t.Context(), id)
	if err != nil {
		return nil
	}
	defer l.Close()
	for off := 0; off < len(image); off += layers.BlockSize {
		want := image[off:min(off+layers.BlockSize, len(image))]
		got := make([]byte, len(want))
		if _, err := l.ReadAt(got, int64(off)); err != nil {
			lost[int64(off)] = true
		} else if !bytes.Equal(got, want) {
			t.Errorf("backup %s at %d: wrong bytes without an error", id, off)
		}
	}
	return lost
}

// TestAuditFindsDamage: whatever happens to whatever object, a deep audit names
// the object, and as touched exactly the blocks of the backups that cannot be
// read. // B15
func TestAuditFindsDamage(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		s := newSample(t, encrypted)
		key := Key{Passphrase: map[bool]string{true: secret}[encrypted]}
		images := s.images(t, key)
		s.delete(t, key)
		kinds := make(map[string]bool)
		names := slices.Sorted(maps.Keys(s.objects))
		for _, name := range names {
			if name == headName {
				continue // without it nothing opens: TestDamageIsFound
			}
			kinds[name[:2]+kindInVolume(name)] = true
			for what, broken := range breakages(s, names, name) {
				if broken == nil && name[:2] == sessionRoot || what == "missing" && slices.Contains([]string{"b", "d"}, kindInVolume(name)) {
					continue // it is as if it had never been
				}
				store := storeOf(t, s.objects)
				if store.Delete(t.Context(), name); broken != nil {
					store.Put(t.Context(), name, broken)
				}
				r, err := Open(t.Context(), store, key)
				if err != nil {
					if !strings.Contains(err.Error(), name) && !strings.HasPrefix(name, slotPrefix) {
						t.Errorf("%s %s: open: %v", name, what, err)
					}
					continue
				}
				report, err := r.Audit(t.Context(), AuditOptions{Level: Deep})
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) || !strings.Contains(fmt.Sprint(report.Findings), name) {
					t.Errorf("encrypted=%t: %s %s: %v, findings %v", encrypted, name, what, err, report.Findings)
				}
				s.compareTouched(t, r, report, images, name+" "+what)
				r.Close()
			}
		}
		if want := map[bool]int{true: 7, false: 5}[encrypted]; len(kinds) < want {
			t.Errorf("encrypted=%t: only kinds %v were tried", encrypted, kinds)
		}
	}
}

// compareTouched compares what a report says is lost with what cannot be read.
func (s *sample) compareTouched(t testing.TB, r *Repo, report AuditReport, images map[layers.ID][]byte, what string) {
	t.Helper()
	for id, image := range images {
		want := unreadable(t, r, id, image)
		i := slices.IndexFunc(report.Damaged, func(b Touched) bool { return b.Backup == id })
		switch {
		case want == nil: // its root cannot be read
			if i < 0 || len(report.Damaged[i].Ranges) != 0 {
				t.Errorf("%s: backup %s cannot be opened, told is %+v", what, id, report.Damaged)
			}
			continue
		case i < 0:
			if len(want) > 0 {
				t.Errorf("%s: %d blocks of backup %s cannot be read, and nothing is told", what, len(want), id)
			}
			continue
		}
		told, bytes := make(map[int64]bool), int64(0)
		for _, r := range report.Damaged[i].Ranges {
			bytes += r.Len
			for off := r.Off; off < r.Off+r.Len; off += layers.BlockSize {
				told[off] = true
			}
		}
		if bytes != report.Damaged[i].Bytes && len(report.Damaged[i].Ranges) < maxRanges {
			t.Errorf("%s: ranges of %d bytes, told are %d", what, bytes, report.Damaged[i].Bytes)
		}
		if len(report.Damaged[i].Ranges) < maxRanges && !maps.Equal(told, want) {
			t.Errorf("%s: backup %s: told are the blocks %v, lost are %v", what, id, slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// A memoryLedger keeps in memory what an agent keeps in its catalog.
type memoryLedger map[string]time.Time

func (m memoryLedger) ledger() Ledger {
	return Ledger{
		Read: func(each func(string, time.Time)) error {
			for pack, at := range maps.Clone(m) {
				each(pack, at)
			}
			return nil
		},
		Keep: func(packs []string, at time.Time) error {
			for _, pack := range packs {
				m[pack] = at
			}
			return nil
		},
		Drop: func(packs []string) error {
			for _, pack := range packs {
				delete(m, pack)
			}
			return nil
		},
	}
}

// TestAuditReadsEachPackOnce: packs and leaves that several backups share are
// read once. // B.9
func TestAuditReadsEachPackOnce(t *testing.T) {
	s := newSample(t, true)
	var mu sync.Mutex
	gets := make(map[string]int)
	hook := &objecttest.Hook{Store: storeOf(t, s.objects), Before: func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "get" {
			gets[name]++
		}
		return nil
	}}
	r, err := Open(t.Context(), hook, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	progress, leaves := int64(0), 0
	report, err := r.Audit(t.Context(), AuditOptions{Level: Map})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range gets {
		if name[:2] == "m/" || name[:2] == "p/" {
			leaves += n
		}
	}
	if int64(leaves) != report.Leaves+1 { // one of the backups has an inventory
		t.Errorf("%d requests for %d leaves and an inventory", leaves, report.Leaves)
	}
	clear(gets)
	report, err = r.Audit(t.Context(), AuditOptions{Level: Deep, Progress: func(done, total int64) {
		if done < progress || done > total {
			t.Errorf("progress %d of %d after %d", done, total, progress)
		}
		progress = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	whole := 0
	for name, n := range gets {
		if name[:2] == "p/" {
			whole++
		}
		if kind := kindInVolume(name); kind == "b" && n != 1 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
	if report.Backups != 3 || report.Read != report.Packs || report.Packs < int64(whole) || report.Bytes > progress {
		t.Errorf("report %+v after %d packs of data and %d bytes", report, whole, progress)
	}
}

// TestAuditGoesOnWhereItStopped: a deep audit that is cut off, at whatever
// request, has kept what it read, and the next one reads the rest only; what is
// read first is what was not for longest.
func TestAuditGoesOnWhereItStopped(t *testing.T) {
	s := newSample(t, false)
	hook := &objecttest.Hook{Store: storeOf(t, s.objects)}
	r, err := Open(t.Context(), hook, Key{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ledger := memoryLedger{packName(inData, objectID{1}): time.Now()} // of a backup that is deleted
	began := time.Now().Add(-time.Minute)
	tries := 1
	for ; ; tries++ {
		before := len(ledger)
		ctx, cancel := context.WithCancel(t.Context())
		hook.Before = func(string, string) error { return ctx.Err() }
		calls := 0
		report, err := r.Audit(ctx, AuditOptions{Level: Deep, Since: began, Ledger: ledger.ledger(), Progress: func(int64, int64) {
			if calls++; calls > 4 { // three leaves, the packs to come, and the first of these
				cancel()
			}
		}})
		cancel()
		if err == nil {
			if tries < 3 || report.Read+report.Skipped != report.Packs || len(ledger) != int(report.Packs) || report.Oldest.Before(began) {
				t.Errorf("done after %d tries: %+v, %d packs remembered", tries, report, len(ledger))
			}
			break
		}
		if !errors.Is(err, context.Canceled) || tries > 1 && len(ledger) <= before {
			t.Fatalf("try %d: %v, %d packs remembered, %d before", tries, err, len(ledger), before)
		}
	}
	// Since ever: all are read again, the oldest first, beside auditReads-1 others.
	oldest := slices.MaxFunc(slices.Collect(maps.Keys(ledger)), func(a, b string) int { return len(s.objects[a]) - len(s.objects[b]) })
	ledger[oldest] = began
	begun := make(chan struct{})
	leaves := 0 // the packs of leaves are read in between until all leaves are there
	var deep atomic.Bool
	hook.Before = func(op, name string) error {
		switch {
		case !deep.Load() || op != "get":
		case name == oldest:
			close(begun)
		default:
			select {
			case <-begun:
			case <-time.After(5 * time.Minute): // it would never be
				return errors.New("the pack that was read longest ago was not begun")
			}
		}
		return nil
	}
	report, err := r.Audit(t.Context(), AuditOptions{Level: Deep, Ledger: ledger.ledger(), Progress: func(int64, int64) {
		if leaves++; leaves > 3 {
			deep.Store(true)
		}
	}})
	if err != nil || report.Skipped != 0 || report.Read != report.Packs {
		t.Errorf("a second round: %+v, %v", report, err)
	}
}

// TestAuditLevels: what each level finds of a pack.
func TestAuditLevels(t *testing.T) {
	s := newSample(t, true)
	key := Key{Passphrase: secret}
	pack := ""
	for name, b := range s.objects {
		if name[:2] == "p/" && len(b) > len(s.objects[pack]) {
			pack = name
		}
	}
	whole := s.objects[pack]
	flipped := bytes.Clone(whole)
	flipped[headerSize+5] ^= 1
	for what, c := range map[string]struct {
		bytes []byte // nil: missing
		level Level  // from which on it is found
		hurts bool   // the data of backups, and not the pack's account of itself only
	}{
		"missing":   {nil, Presence, true},
		"half":      {whole[:len(whole)/2], Presence, true},
		"cut":       {whole[:len(whole)-1], Presence, false},
		"too long":  {append(bytes.Clone(whole), 0), Presence, false},
		"one frame": {flipped, Sample, true},
	} {
		for level := Presence; level <= Deep; level++ {
			store := storeOf(t, s.objects)
			if store.Delete(t.Context(), pack); c.bytes != nil {
				store.Put(t.Context(), pack, c.bytes)
			}
			r, err := Open(t.Context(), store, key)
			if err != nil {
				t.Fatal(err)
			}
			report, err := r.Audit(t.Context(), AuditOptions{Level: level})
			if found := errors.Is(err, ErrCorrupt); found != (level >= c.level) {
				t.Errorf("%s at level %s: %v", what, level, err)
			} else if found && (report.Count != 1 || report.Findings[0].Object != pack || len(report.Findings[0].Backups) > 0 != c.hurts || len(report.Damaged) > 0 != c.hurts) {
				t.Errorf("%s at level %s: %+v", what, level, report)
			}
			r.Close()
		}
	}
}

// TestAuditAsksAgain: a listing that lags is no damage, a store that is away
// neither.
func TestAuditAsksAgain(t *testing.T) {
	s := newSample(t, true)
	hidden := func(name string) bool { return name[:2] == "p/" && name[len(name)-1]%2 == 0 }
	r, err := Open(t.Context(), &lagging{storeOf(t, s.objects), hidden}, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep}); err != nil || report.Read != report.Packs {
		t.Errorf("with half of the packs not listed: %+v, %v", report, err)
	}
	away := &objecttest.Hook{Store: storeOf(t, s.objects)}
	r2, err := Open(t.Context(), away, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	for _, prefix := range []string{"p/", "m/", "v/", "k/", "s/"} {
		away.Before = func(op, name string) error {
			if op == "get" && strings.HasPrefix(name, prefix) {
				return errSource
			}
			return nil
		}
		if report, err := r2.Audit(t.Context(), AuditOptions{Level: Deep}); !errors.Is(err, errSource) || errors.Is(err, ErrCorrupt) || report.Count > 0 {
			t.Errorf("while %s is away: %v, %+v", prefix, err, report)
		}
	}
}

// TestPace: n bytes take n / rate, whoever reads them.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &pacedStore{Store: object.NewMem(), pace: pace{rate: 1000}}
		if err := store.Put(t.Context(), "a", make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { store.Get(t.Context(), "a", make([]byte, 500), 0) })
		}
		wg.Wait()
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("5 times 500 bytes at 1000 a second began after %v, want 2s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := store.Get(ctx, "a", make([]byte, 1<<20), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("a read that is canceled: %v", err)
		}
	})
}

// shortened says of small objects that they are shorter than they are.
type shortened struct{ object.Store }

func (s shortened) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			if _, pack := packOf(info.Name); !pack && kindInVolume(info.Name) != "b" {
				info.Size /= 2
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestAuditGoesByNoLengthOfAListing: a small object is read to its end, whatever
// a listing says of it.
func TestAuditGoesByNoLengthOfAListing(t *testing.T) {
	s := newSample(t, true)
	s.delete(t, Key{Passphrase: secret})
	r := hostOf(t, shortened{storeOf(t, s.objects)})
	if report, err := r.Audit(t.Context(), AuditOptions{Level: Deep}); err != nil {
		t.Errorf("%v, %+v", err, report.Findings)
	}
}
