package agent

import (
	"context"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/agent/object"
	"varve/catalog"
)

// largest returns the name of the largest object with a prefix, and what is in
// it.
func (s *faulty) largest(t testing.TB, prefix string) (name string, content []byte) {
	t.Helper()
	for info, err := range s.Store.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size <= int64(len(content)) {
			continue
		}
		name = info.Name
		content = must(object.ReadAll(t.Context(), s.Store, name, 1<<30))(t)
	}
	return name, content
}

func (s *faulty) replace(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := s.Store.Put(t.Context(), name, content); err != nil {
		t.Fatal(err)
	}
}

// flipped is content with one bit that is another.
func flipped(content []byte, at int) []byte {
	other := slices.Clone(content)
	other[at] ^= 1
	return other
}

// TestVerificationMarksBackups: what a verification finds is in its operation,
// with the backups and ranges, and in the backups until one as deep finds them
// whole. // B15
func TestVerificationMarksBackups(t *testing.T) {
	w, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, mib, mib)
	first := backUp(t, a, NewBackup{Volume: "v", Name: "first"})
	write(t, a, "v", 2, 3*mib, 8192)
	backUp(t, a, NewBackup{Volume: "v", Name: "second", Incremental: true})
	createVolume(t, a, "other", 4*mib)
	write(t, a, "other", 3, 0, 4096)
	backUp(t, a, NewBackup{Volume: "other", Name: "other"})

	verify := func(mode string) catalog.Operation {
		t.Helper()
		return finish(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: mode}))(t))
	}
	marked := func() (names []string) {
		for _, b := range must(a.Backups(t.Context()))(t) {
			if b.Damage != "" {
				names = append(names, b.Name)
			}
			if b.Status != catalog.Available {
				t.Errorf("backup %s is %s", b.Name, b.Status)
			}
		}
		slices.Sort(names)
		return names
	}
	for _, mode := range []string{"presence", "map", "sample", "deep"} {
		if op := verify(mode); op.State != catalog.Succeeded || op.Damage != 0 || !strings.HasPrefix(op.Note, "3 backups") {
			t.Fatalf("%s of a target that is whole: %+v", mode, op)
		}
		if v := must(a.Target(t.Context(), "t1"))(t).Verified; v.Mode != mode || v.Backups != 3 || v.Ended.IsZero() || v.Oldest.IsZero() != (mode != "deep") {
			t.Errorf("%s: the target has %+v", mode, v)
		}
	}
	store := w.store(url("t1"))
	name, content := store.largest(t, "p/")
	store.replace(t, name, flipped(content, 200_000))
	if op := verify("map"); op.State != catalog.Succeeded || len(marked()) != 0 {
		t.Errorf("map does not read frames: %+v", op)
	}
	op := verify("deep")
	if op.State != catalog.Failed || op.Damage != 1 || len(op.Findings) != 1 || op.Findings[0].File != name ||
		!strings.Contains(op.Error, name) || !strings.Contains(op.Error, `"first" of volume v (`+first.ID.String()) {
		t.Fatalf("deep: %+v", op)
	}
	lost := op.Findings[0].Backups
	if len(lost) != 2 || lost[0].Bytes != 128<<10 || len(lost[0].Ranges) != 1 || lost[0].Ranges[0].Off%(128<<10) != 0 || lost[0].VolumeName != "v" {
		t.Errorf("deep: lost are %+v", lost)
	}
	if got := marked(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("marked are %v", got)
	}
	if err := a.SyncTarget(t.Context(), "t1"); err != nil || len(marked()) != 2 {
		t.Errorf("after a sync %v are marked: %v", marked(), err)
	}
	store.replace(t, name, content)
	if verify("map"); len(marked()) != 2 {
		t.Errorf("map, which would not find it, took the marks away")
	}
	if verify("deep"); len(marked()) != 0 {
		t.Errorf("still marked are %v", marked())
	}

	// The same by the verification of one backup.
	store.replace(t, name, flipped(content, 200_000))
	op = finish(t, a, must(a.VerifyBackup(t.Context(), "first", true))(t))
	if op.State != catalog.Failed || op.Damage != 1 || op.Findings[0].File != name || !slices.Equal(marked(), []string{"first"}) {
		t.Errorf("backup verify: %+v, marked %v", op, marked())
	}
	store.replace(t, name, content)
	if succeed(t, a, must(a.VerifyBackup(t.Context(), "first", true))(t)); len(marked()) != 0 {
		t.Errorf("still marked are %v", marked())
	}
}

// TestVerificationGoesOn: a deep verification goes on under the next daemon with
// what the one before had not read, also after it was killed.
func TestVerificationGoesOn(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		createVolume(t, a, name, 4*mib)
		write(t, a, name, 1, 0, mib)
		backUp(t, a, NewBackup{Volume: name, Name: name})
	}
	store := w.store(url("t1"))
	var mu sync.Mutex
	var reads []string
	hang := 0 // from so many whole packs on, requests wait; 0: never
	stuck := make(chan struct{}, 1)
	readers := func(ctx context.Context, op, name string) error {
		if op != "get" || !strings.HasPrefix(name, "p/") {
			return nil
		}
		mu.Lock()
		reads = append(reads, name)
		waits := hang > 0 && len(reads) > hang
		mu.Unlock()
		if !waits {
			return nil
		}
		select {
		case stuck <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	}
	store.on(readers)
	succeed(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "map"}))(t))
	maps := len(reads) // requests for leaves in the packs
	reads, hang = nil, maps+4
	op := must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "deep"}))(t)
	_, err := a.VerifyTarget(t.Context(), "t1", VerifyRequest{})
	wantError(t, err, Conflict, "t1", "already")
	select {
	case <-stuck:
	case <-time.After(patience):
		t.Fatal("it does not read")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	first := slices.Clone(reads[maps : maps+4])
	reads, hang = nil, 0
	mu.Unlock()

	a = w.start(dir)
	last := succeed(t, a, op)
	mu.Lock()
	defer mu.Unlock()
	again := 0
	for _, name := range reads[maps:] {
		if slices.Contains(first, name) {
			again++
		}
	}
	if len(reads) != maps+6-(4-again) || again > 2 || last.Kind != kindVerifyTarget { // two were being read
		t.Errorf("%d packs were read after %v, of these %d again; %s", len(reads)-maps, first, again, last.Note)
	}
	if v := must(a.Target(t.Context(), "t1"))(t).Verified; v.Operation != op.ID || v.Mode != "deep" || v.Packs != 6 || v.Oldest.IsZero() {
		t.Errorf("the target has %+v", v)
	}
}

// TestVerificationIsRefused: requests that make no sense.
func TestVerificationIsRefused(t *testing.T) {
	_, a := startWithTarget(t)
	for _, r := range []VerifyRequest{
		{Mode: "full"}, {Samples: 5}, {Mode: "deep", Samples: 5}, {Mode: "map", OlderThan: time.Hour}, {MaxRate: -1}, {Mode: "sample", Samples: -1},
	} {
		_, err := a.VerifyTarget(t.Context(), "t1", r)
		wantError(t, err, Invalid)
	}
	_, err := a.VerifyTarget(t.Context(), "t2", VerifyRequest{})
	wantError(t, err, NotFound)
	succeed(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "deep", MaxRate: 1, OlderThan: time.Hour}))(t)) // it is empty
}

// TestVerificationWithoutBeingAsked: a target that asks for it is verified by
// the daemon when it is due, with what was read before left out, and not when
// it is not.
func TestVerificationWithoutBeingAsked(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	runs := func() (ended []catalog.Operation) {
		t.Helper()
		for _, op := range must(a.Operations(t.Context()))(t) {
			if op.Kind == kindVerifyTarget {
				ended = append(ended, succeed(t, a, op))
			}
		}
		return ended
	}
	now := time.Now().UTC()
	if a.verifyDue(now); len(runs()) != 0 {
		t.Fatal("verified without a wish for it")
	}
	every, rate, short := 90*24*time.Hour, int64(1<<30), time.Minute
	if _, err := a.ChangeTarget(t.Context(), "t1", TargetSettings{VerifyEvery: &short}, nil); ReasonOf(err) != Invalid {
		t.Errorf("every minute: %v", err)
	}
	must(a.ChangeTarget(t.Context(), "t1", TargetSettings{VerifyEvery: &every, VerifyRate: &rate}, nil))(t)
	if a.verifyDue(now); len(runs()) != 1 {
		t.Fatalf("%d runs after the first that was due", len(runs()))
	}
	record := must(a.Target(t.Context(), "t1"))(t)
	if v := record.Verified; v.Mode != "deep" || v.Read != v.Packs || v.Packs == 0 || v.Damage != 0 {
		t.Errorf("verified: %+v", v)
	}
	for _, c := range []struct {
		after time.Duration
		runs  int
	}{{every/2 - time.Hour, 1}, {every/2 + time.Hour, 2}} {
		if a.verifyDue(now.Add(c.after)); len(runs()) != c.runs {
			t.Errorf("%d runs %s later, want %d", len(runs()), c.after, c.runs)
		}
	}
	// One that did not come to its end is begun again a day later.
	record.VerifyBegun = record.Verified.Ended.Add(time.Hour)
	for after, due := range map[time.Duration]bool{23 * time.Hour: false, 25 * time.Hour: true} {
		if verificationDue(record, record.VerifyBegun.Add(after)) != due {
			t.Errorf("%s after one that was cut off: due is not %t", after, due)
		}
	}
	off := time.Duration(0)
	must(a.ChangeTarget(t.Context(), "t1", TargetSettings{VerifyEvery: &off}, nil))(t)
	if a.verifyDue(now.Add(10 * every)); len(runs()) != 2 {
		t.Errorf("%d runs after it was switched off, want 2", len(runs()))
	}
}

// TestVerificationSurvivesAKill: a state folder as kill -9 leaves it in the
// middle of a deep verification has what was read up to the last checkpoint,
// and the next daemon reads the rest.
func TestVerificationSurvivesAKill(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", 4*mib)
	const backups = 72
	for i := range backups {
		write(t, a, "v", uint64(i+1), int64(i)*8192, 4096)
		backUp(t, a, NewBackup{Volume: "v", Name: "b", Incremental: i > 0})
	}
	store := w.store(url("t1"))
	var mu sync.Mutex
	reads, hang := 0, 0
	stuck := make(chan struct{}, 1)
	isPack := func(op, name string) bool {
		return op == "get" && name[1] == '/' && strings.ContainsAny(name[:1], "pm")
	}
	store.on(func(ctx context.Context, op, name string) error {
		if !isPack(op, name) {
			return nil
		}
		mu.Lock()
		reads++
		waits := hang > 0 && reads > hang
		mu.Unlock()
		if !waits {
			return nil
		}
		select {
		case stuck <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	})
	mapped := succeed(t, a, must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "map"}))(t))
	leaves := reads
	packs := int(must(a.Target(t.Context(), "t1"))(t).Verified.Packs)
	if packs < backups {
		t.Fatalf("%d packs: %s", packs, mapped.Note)
	}
	mu.Lock()
	reads, hang = 0, leaves+packs-3
	mu.Unlock()
	op := must(a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "deep"}))(t)
	select {
	case <-stuck:
	case <-time.After(patience):
		t.Fatal("it does not read")
	}
	killed := copyState(t, dir)
	// The next daemon comes to the store by a way of its own: the one before goes
	// on to hang, and whatever it asks for still is not counted.
	after := newWorld(t)
	after.stores[url("t1")] = &faulty{Store: store.Store}
	var asked atomic.Int64
	after.store(url("t1")).on(func(_ context.Context, op, name string) error {
		if isPack(op, name) {
			asked.Add(1)
		}
		return nil
	})
	succeed(t, after.start(killed), op)
	// 3 were never read, 2 were being read, and fewer than 64 were read since the
	// last checkpoint.
	if again := int(asked.Load()) - leaves; again > 3+2+63 || again < 3 {
		t.Errorf("%d of %d packs were read by the daemon after", again, packs)
	}
}

// More samples than anybody has time for are refused.
func TestSamplesAreBounded(t *testing.T) {
	_, a := startWithTarget(t)
	_, err := a.VerifyTarget(t.Context(), "t1", VerifyRequest{Mode: "sample", Samples: math.MaxInt})
	wantError(t, err, Invalid, "deep reads everything")
}
