package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"varve/agent/repo"
	"varve/catalog"
)

// TestRestorePastDamageGoesOn: a restore past damage that dies at any read goes
// on, and tells in the end what one that nobody cut off tells. // B15
func TestRestorePastDamageGoesOn(t *testing.T) {
	const size = 4 * mib
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", size)
	for at := int64(0); at < size; at += 2 * mib {
		write(t, a, "v", uint64(at), at, mib)
	}
	want := content(t, a, "v")
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	damageLargest(t, w.store(url("t1")))

	past := RestoreRequest{Name: "rest", AllowDamaged: true}
	check := func(t *testing.T, a *Agent, op catalog.Operation) (told string) {
		last := finish(t, a, op)
		if last.State != catalog.Succeeded || last.Damage == 0 || len(last.Findings) != 1 || !strings.Contains(last.Note, "lost") {
			t.Fatalf("restored past damage: %+v", last)
		}
		v := must(a.Volume(t.Context(), "rest"))(t)
		if v.Status != catalog.Available || v.Reason != last.Note {
			t.Errorf("the volume is %s, %q", v.Status, v.Reason)
		}
		left := slices.Clone(want)
		for _, r := range last.Findings[0].Backups[0].Ranges {
			clear(left[r.Off : r.Off+r.Len])
		}
		same(t, "what is left", content(t, a, "rest"), left)
		return fmt.Sprint(last.Findings[0].Backups, last.Damage)
	}
	whole := w.start(copyState(t, dir))
	_, op, err := whole.RestoreBackup(t.Context(), "b", past)
	if err != nil {
		t.Fatal(err)
	}
	told := check(t, whole, op)
	whole.Close()

	for get := 1; ; get++ {
		died := copyState(t, dir)
		a := w.start(died)
		a.restoreEvery = 1
		s := w.store(url("t1"))
		reached := s.waitAt("get", get)
		_, op, err := a.RestoreBackup(t.Context(), "b", past)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for range a.WatchOperation(context.WithoutCancel(t.Context()), op.ID) {
			}
		}()
		select {
		case <-ended:
			a.Close()
			if get < 4 {
				t.Errorf("a restore makes %d reads", get-1)
			}
			return
		case <-reached:
		}
		a.Close()
		s.on(nil)
		a = w.start(died)
		if again := check(t, a, op); again != told {
			t.Errorf("cut off at read %d it tells %s, want %s", get, again, told)
		}
		nothingLeft(t, a)
		a.Close()
	}
}

// TestWhatARestoreRemembersOfLoss: ranges that meet are told as one, and their
// number has a bound.
func TestWhatARestoreRemembersOfLoss(t *testing.T) {
	s := &restoration{target: catalog.Target{URL: "file:///t"}}
	s.state.Past = true
	for i := range int64(3 * maxLost) {
		off := (i * 7919) % (3 * maxLost) // every one once, in no order
		if err := s.lose(repo.Loss{Range: repo.Range{Off: off * 8192, Len: 4096}, Err: fmt.Errorf("damage %d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.state.Lost); n > maxLost || !s.state.More || s.state.Why != "damage 0" {
		t.Errorf("%d ranges are kept, more: %v, why: %q", n, s.state.More, s.state.Why)
	}
	s.state.Lost, s.state.More = nil, false
	for i := range int64(3 * maxLost) {
		if err := s.lose(repo.Loss{Range: repo.Range{Off: i * 4096, Len: 4096}, Err: fmt.Errorf("damage")}); err != nil {
			t.Fatal(err)
		}
	}
	op := &operation{changed: make(chan struct{})}
	s.tellLost(op)
	record, _ := op.state()
	if s.state.More || record.Damage != 1 || record.Findings[0].Backups[0].Bytes != 3*maxLost*4096 {
		t.Errorf("neighbours are told as %d ranges of %d bytes", record.Damage, record.Findings[0].Backups[0].Bytes)
	}
}
