package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"varve/agent/repo"
)

// Losses come as they are found, and are told in their order, joined; only
// ranges that do not meet take memory. // B15
func TestPastDamage(t *testing.T) {
	var told bytes.Buffer
	p := &pastDamage{call: &call{program: &program{stderr: &told}}}
	if err := p.tell(); err != nil || told.Len() > 0 {
		t.Fatalf("nothing is lost: %v, %q", err, told.String())
	}
	first := errors.New("what was found first")
	p.take(repo.Loss{Range: repo.Range{Off: 1 << 40, Len: 4096}, Err: first})
	const pieces = 100_000
	for i := range int64(pieces) {
		off := (i*7919%pieces + 10) * 4096 // each place once
		p.take(repo.Loss{Range: repo.Range{Off: off, Len: 4096}, Err: errors.New("another")})
	}
	err := p.tell()
	want := "backup restore: lost: 40960-409640959 (409600000 bytes)\nbackup restore: lost: 1099511627776-1099511631871 (4096 bytes)\n"
	if told.String() != want {
		t.Errorf("told %q, want %q", told.String(), want)
	}
	if err == nil || !strings.Contains(err.Error(), "409604096 bytes in 2 ranges") || !strings.Contains(err.Error(), first.Error()) {
		t.Errorf("error %v", err)
	}
	// In order they join as they come.
	ordered := &pastDamage{call: p.call}
	for i := range int64(pieces) {
		ordered.take(repo.Loss{Range: repo.Range{Off: i * 4096, Len: 4096}, Err: first})
	}
	if len(ordered.lost) > 2048 {
		t.Errorf("one range is kept as %d", len(ordered.lost))
	}
}
