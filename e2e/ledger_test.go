package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const blockSize = 4096

// A ledger is what a writer (testdata/writer.py) has done to a range of blocks,
// and what it was promised.
type ledger struct {
	first, count int
	answered     bool // an answer is a promise, as when the machine does not fail

	mu      sync.Mutex
	blocks  [][]version // ascending by round; what was there before any is a zero of round 0
	acks    []ack       // what is durable
	answers []ack       // what was answered: a snapshot made later has it, durable or not
	problem error       // what the writer said and could not be understood
}

// A version is a content that a block had, or may have.
type version struct {
	round uint64
	zero  bool
}

// An ack is a promise that was given: writes up to a round are durable.
type ack struct {
	place int // in the log of the disk; 0 where there is none
	round uint64
	block int // -1: all
}

func newLedger(first, count int) *ledger {
	l := &ledger{first: first, count: count, blocks: make([][]version, count)}
	for b := range l.blocks {
		l.blocks[b] = []version{{zero: true}}
	}
	return l
}

// fork returns a ledger for the same blocks of a copy that was just made, with
// this content.
func (l *ledger) fork(content []byte) *ledger {
	f := newLedger(l.first, l.count)
	f.answered = l.answered
	f.settle(content)
	return f
}

// follow reads what a writer says until it ends. place gives each promise its
// place in the log of the disk.
func (l *ledger) follow(said io.Reader, place func() int) {
	in := bufio.NewScanner(said)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if err := l.hear(words, place()); err != nil {
			l.mu.Lock()
			l.problem = fmt.Errorf("the writer said %q: %w", in.Text(), err)
			l.mu.Unlock()
		}
	}
}

func (l *ledger) hear(words []string, place int) error {
	if len(words) < 2 {
		return fmt.Errorf("too few words")
	}
	round, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if words[0] == "a" {
		l.answers = append(l.answers, ack{place, round, -1})
	}
	if words[0] == "f" || words[0] == "a" && l.answered {
		l.acks = append(l.acks, ack{place, round, -1})
		return nil
	}
	for _, word := range words[2:] {
		b, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		switch b -= l.first; words[0] {
		case "w", "z":
			l.blocks[b] = append(l.blocks[b], version{round, words[0] == "z"})
		case "u":
			l.acks = append(l.acks, ack{place, round, b})
		}
	}
	return nil
}

// promised is how many promises were given so far.
func (l *ledger) promised() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acks)
}

// check compares the content of a volume with what was promised up to a place
// in the log: each block holds what it held at the last promise, or what was
// written since.
func (l *ledger) check(content []byte, place int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.compare(content, place, l.acks)
}

// checkSealed compares the content of a snapshot that was begun at a place in
// the log: all that was answered before is in it.
func (l *ledger) checkSealed(content []byte, place int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.compare(content, place, slices.Concat(l.acks, l.answers))
}

// compare is check. The caller holds mu.
func (l *ledger) compare(content []byte, place int, acks []ack) error {
	if l.problem != nil {
		return l.problem
	}
	if len(content) < (l.first+l.count)*blockSize {
		return fmt.Errorf("the volume has %d bytes", len(content))
	}
	all, single := uint64(0), make([]uint64, l.count)
	for _, a := range acks {
		switch {
		case a.place > place:
		case a.block < 0:
			all = max(all, a.round)
		default:
			single[a.block] = max(single[a.block], a.round)
		}
	}
	var wrong []string
	for b, versions := range l.blocks {
		block := content[(l.first+b)*blockSize:][:blockSize]
		oldest := 0
		for i, v := range versions {
			if v.round <= max(all, single[b]) {
				oldest = i
			}
		}
		if err := l.checkBlock(b, block, versions[oldest:]); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d blocks are wrong, such as %s", len(wrong), wrong[0])
	}
	return nil
}

func (l *ledger) checkBlock(b int, block []byte, may []version) error {
	if !bytes.Equal(block[16:], block[:blockSize-16]) {
		return fmt.Errorf("block %d: torn", l.first+b)
	}
	number, round := binary.LittleEndian.Uint64(block), binary.LittleEndian.Uint64(block[8:])
	if round == 0 && number == 0 {
		if slices.ContainsFunc(may, func(v version) bool { return v.zero }) {
			return nil
		}
	} else if number == uint64(l.first+b) && slices.Contains(may, version{round: round}) {
		return nil
	}
	return fmt.Errorf("block %d: holds block %d of round %d, may hold only %v", l.first+b, number, round, may)
}

// settle takes what was found after a crash for what the blocks hold: a write
// that was lost is not promised by later flushes.
func (l *ledger) settle(content []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := range l.blocks {
		round := binary.LittleEndian.Uint64(content[(l.first+b)*blockSize+8:])
		l.blocks[b] = []version{{round, round == 0}}
	}
	l.acks, l.answers = nil, nil
}

// A writer is a process of testdata/writer.py.
type writer struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when all that it said was read
}

// startWriter writes to an export until stop, or the daemon's end. It may be
// called by any goroutine of the test.
func startWriter(t *testing.T, d *daemon, export string, l *ledger, seed, round uint64, place func() int) (*writer, error) {
	w := &writer{t: t, ended: make(chan struct{})}
	w.cmd = exec.Command("/usr/bin/python3", "testdata/writer.py", d.uri(export), strconv.Itoa(l.first), strconv.Itoa(l.count),
		strconv.FormatUint(seed, 10), strconv.FormatUint(round, 10))
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		l.follow(said, place)
		close(w.ended)
	}()
	t.Cleanup(w.stop)
	return w, nil
}

// stop ends the writer and waits until all that it said is in the ledger.
func (w *writer) stop() {
	if w.cmd == nil {
		return
	}
	w.stdin.Close()
	<-w.ended
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("writer: %v", err)
	}
	w.cmd = nil
}
