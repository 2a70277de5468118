package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"varve/e2e/testbed"
)

// A history is what was done to the volume "vol" of a daemon and to its clones,
// with the moment before and after each act. So what a crash at any moment may
// leave is known.
//
// A moment is a number that grows: a place in the log of a disk, or a count.
type history struct {
	t        *testing.T
	d        *daemon
	now      func() int
	scratch  string // folder for images
	seed     uint64 // of the writers
	answered bool   // an answer is a promise: see ledger
	writers  []*writer
	starts   uint64    // of writers, so that no two write the same
	deck     []actKind // that are still to come before all come again
	kept     []*kept   // in the order of their making
	sizes    []sized   // ascending
	clones   []*clone  // in the order of their making

	mu    sync.Mutex // lines, which a test looks at while acts go on
	lines []*line    // what the volume has been; each but the first began with a revert
}

// A line is what the volume is between two reverts.
type line struct {
	began   span
	ledgers []*ledger // of each writer
}

// kept is a snapshot.
type kept struct {
	name   string // "" while the name of a safety snapshot was not answered
	of     *line
	sum    [sha256.Size]byte // of its content; zero while nobody has read it
	making span
	giving span // its deletion; zero: never
}

// sized is a growth to a size in bytes.
type sized struct {
	size int64
	span
}

// A span is an act: the moment when it began and that of its answer, 0 while
// there is none.
type span struct{ begin, end int }

// begun and done report whether an act had begun, and had been answered, when
// the crash came.
func (s span) begun(at int) bool { return s.begin > 0 && s.begin < at }
func (s span) done(at int) bool  { return s.end > 0 && s.end <= at }

const (
	volumeBlocks = 8192 // of the volume "vol" at first
	writerBlocks = 3000 // that each of its writers writes; the rest stays zero
)

// maxStanding bounds the snapshots that a check has to read, maxClones the
// clones.
const (
	maxStanding = 6
	maxClones   = 2
)

// newHistory makes the volume, in a daemon that runs. answered says that all
// that is answered survives.
func newHistory(t *testing.T, d *daemon, scratch string, seed uint64, answered bool, now func() int) *history {
	t.Helper()
	testbed.Require(t, "nbdcopy", "/usr/lib/python3/dist-packages/nbd.py")
	h := &history{t: t, d: d, now: now, scratch: scratch, seed: seed, answered: answered}
	made := span{begin: now()}
	d.varve("volume", "create", "vol", "--size", strconv.Itoa(volumeBlocks*blockSize))
	made.end = now()
	h.sizes = []sized{{volumeBlocks * blockSize, made}}
	first := &line{began: made}
	for i := range 2 {
		l := newLedger(i*writerBlocks, writerBlocks)
		l.answered = answered
		first.ledgers = append(first.ledgers, l)
	}
	h.lines = []*line{first}
	return h
}

// line is what the volume is now.
func (h *history) line() *line {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lines[len(h.lines)-1]
}

// promised is how many promises the first writer of the volume was given so far.
func (h *history) promised() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		n += l.ledgers[0].promised()
	}
	return n
}

// promises are the moments of all promises, to the writers of clones too.
func (h *history) promises() (places []int) {
	ledgers := []*ledger{}
	for _, l := range h.lines {
		ledgers = append(ledgers, l.ledgers...)
	}
	for _, c := range h.clones {
		ledgers = append(ledgers, c.ledgers...)
	}
	for _, l := range ledgers {
		for _, a := range l.acks {
			places = append(places, a.place)
		}
	}
	return places
}

// write starts the writers. What they write is told from what any writer before
// wrote, and from what those of clones write.
func (h *history) write() error {
	for _, l := range h.line().ledgers {
		w, err := h.startWriter("vol", l)
		if err != nil {
			return err
		}
		h.writers = append(h.writers, w)
	}
	return nil
}

func (h *history) startWriter(export string, l *ledger) (*writer, error) {
	h.starts++
	return startWriter(h.t, h.d, export, l, h.seed+h.starts, h.starts<<32, h.now)
}

// rest stops the writers.
func (h *history) rest() {
	for _, w := range h.writers {
		w.stop()
	}
	h.writers = nil
}

// String lists the acts, for whoever looks for the reason of a failure.
func (h *history) String() string {
	var b strings.Builder
	for _, l := range h.lines[1:] {
		fmt.Fprintf(&b, "revert: %v\n", l.began)
	}
	for _, s := range h.kept {
		fmt.Fprintf(&b, "snapshot %s: made %v, deleted %v\n", s.name, s.making, s.giving)
	}
	for _, c := range h.clones {
		fmt.Fprintf(&b, "clone %s: made %v, deleted %v\n", c.name, c.making, c.giving)
	}
	for _, s := range h.sizes {
		fmt.Fprintf(&b, "%d bytes: %v\n", s.size, s.span)
	}
	return b.String()
}

// check compares what a daemon has after a crash with what it may have. at is
// the moment of the crash.
func (h *history) check(d *daemon, at int) error {
	return errors.Join(h.checkVolume(d, at), h.checkSnapshots(d, at), h.checkClones(d, at), checkSound(d))
}

func (h *history) checkVolume(d *daemon, at int) error {
	content, err := h.export(d, "vol")
	if err != nil {
		return err
	}
	least, may := int64(0), false
	for _, s := range h.sizes {
		if s.done(at) {
			least = s.size
		}
		may = may || s.begun(at) && s.size == int64(len(content))
	}
	if int64(len(content)) < least || !may {
		return fmt.Errorf("the volume has %d bytes, had at least %d", len(content), least)
	}
	l, err := h.lineAt(d, at)
	if err != nil {
		return err
	}
	return checkContent(l.ledgers, content, at)
}

// checkContent compares the content of the volume or a clone with what its
// writers were promised up to a moment.
func checkContent(ledgers []*ledger, content []byte, at int) error {
	for i, l := range ledgers {
		if err := l.check(content, at); err != nil {
			return fmt.Errorf("writer %d: %w", i, err)
		}
	}
	return checkRest(content)
}

// checkSealed compares the content of a snapshot, or a new clone, with what was
// answered before it was begun.
func checkSealed(ledgers []*ledger, content []byte, begin int) error {
	for i, l := range ledgers {
		if err := l.checkSealed(content, begin); err != nil {
			return fmt.Errorf("writer %d: %w", i, err)
		}
	}
	return checkRest(content)
}

func checkRest(content []byte) error {
	if rest := bytes.Trim(content[2*writerBlocks*blockSize:], "\x00"); len(rest) > 0 {
		return errors.New("there is data where nobody wrote")
	}
	return nil
}

// export returns the content of an export.
func (h *history) export(d *daemon, name string) ([]byte, error) {
	path := filepath.Join(h.scratch, "export")
	defer os.Remove(path)
	if _, err := tryClient(h.t, "nbdcopy", d.uri(name), path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func (h *history) checkSnapshots(d *daemon, at int) error {
	listed, err := listSnapshots(d)
	if err != nil {
		return err
	}
	unknown, making := len(listed), 0
	var all error
	for _, s := range h.kept {
		there := slices.Contains(listed, s.name)
		switch {
		case !there && s.making.done(at) && !s.giving.begun(at):
			all = errors.Join(all, fmt.Errorf("snapshot %s is lost", s.name))
		case there && (!s.making.begun(at) || s.giving.done(at)):
			all = errors.Join(all, fmt.Errorf("snapshot %s is there and should not", s.name))
		}
		if s.making.begun(at) && !s.making.done(at) {
			making++
		}
		if there {
			unknown--
			_, err := h.checkSnapshot(d, s)
			all = errors.Join(all, err)
		}
	}
	if unknown > making { // one that has not reached the catalog may have another name
		all = errors.Join(all, fmt.Errorf("of the snapshots %s, %d are not known", listed, unknown))
	}
	return all
}

// checkSnapshot compares a snapshot with what it was when it was first read, and
// returns its content. The first time it must have what was answered before it
// was made.
func (h *history) checkSnapshot(d *daemon, s *kept) ([]byte, error) {
	content, err := h.export(d, "vol@"+s.name)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	if s.sum == [sha256.Size]byte{} {
		s.sum = sum
		if err := checkSealed(s.of.ledgers, content, s.making.begin); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", s.name, err)
		}
	}
	if s.sum != sum {
		return nil, fmt.Errorf("snapshot %s has another content", s.name)
	}
	return content, nil
}

// listSnapshots returns the names of the volume's snapshots that are there.
func listSnapshots(d *daemon) ([]string, error) {
	out, errout, err := d.try("snapshot", "list", "vol", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("snapshot list: %w\n%s", err, errout)
	}
	var list []struct{ Name, Status string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	var names []string
	for _, s := range list {
		if s.Status == "available" {
			names = append(names, s.Name)
		}
	}
	return names, nil
}

// settle looks how the acts without an answer have ended, after a check: what
// is there now stays.
func (h *history) settle() error {
	listed, err := listSnapshots(h.d)
	if err != nil {
		return err
	}
	h.settleRevert(listed)
	content, err := h.export(h.d, "vol")
	if err != nil {
		return err
	}
	for _, l := range h.line().ledgers {
		l.settle(content)
	}
	h.kept = slices.DeleteFunc(h.kept, func(s *kept) bool { return s.making.end == 0 && !slices.Contains(listed, s.name) })
	for _, s := range h.kept {
		if s.making.end == 0 {
			s.making.end = h.now()
		}
		s.giving.settle(h, slices.Contains(listed, s.name))
	}
	last := &h.sizes[len(h.sizes)-1]
	if last.end == 0 {
		if h.d.value("size_bytes", "volume", "show", "vol", "--long") == strconv.FormatInt(last.size, 10) {
			last.end = h.now()
		} else {
			h.sizes = h.sizes[:len(h.sizes)-1]
		}
	}
	return h.settleClones()
}

// settle ends a deletion without an answer: what is there still was not deleted.
func (s *span) settle(h *history, there bool) {
	switch {
	case s.begin == 0 || s.end > 0:
	case there:
		*s = span{}
	default:
		s.end = h.now()
	}
}
