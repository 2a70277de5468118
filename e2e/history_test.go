package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// A history is what was done to the volume "vol" of a daemon, with the moment
// before and after each act. So what a crash at any moment may leave is known.
//
// A moment is a number that grows: a place in the log of a disk, or a count.
type history struct {
	t       *testing.T
	d       *daemon
	now     func() int
	scratch string    // folder for images
	ledgers []*ledger // of each writer
	kept    []*kept   // oldest first
	sizes   []sized   // ascending
}

// kept is a snapshot.
type kept struct {
	name   string
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

// maxStanding bounds the snapshots that a check has to read.
const maxStanding = 6

// newHistory makes the volume, in a daemon that runs.
func newHistory(t *testing.T, d *daemon, scratch string, now func() int) *history {
	t.Helper()
	testbed.Require(t, "nbdcopy", "/usr/lib/python3/dist-packages/nbd.py")
	h := &history{t: t, d: d, now: now, scratch: scratch}
	begin := now()
	d.varve("volume", "create", "vol", "--size", strconv.Itoa(volumeBlocks*blockSize))
	h.sizes = []sized{{volumeBlocks * blockSize, span{begin, now()}}}
	for i := range 2 {
		h.ledgers = append(h.ledgers, newLedger(i*writerBlocks, writerBlocks))
	}
	return h
}

// write starts the writers. What they write in this life of the daemon is told
// from other lives.
func (h *history) write(seed, life uint64) []*writer {
	h.t.Helper()
	var writers []*writer
	for i, l := range h.ledgers {
		writers = append(writers, startWriter(h.t, h.d, "vol", l, seed*2+uint64(i), life<<32, h.now))
	}
	return writers
}

// act makes or deletes a snapshot, or lets the volume grow. After an error the
// act has no answer.
func (h *history) act(r *rand.Rand) error {
	standing := slices.DeleteFunc(slices.Clone(h.kept), func(s *kept) bool { return s.giving.begin > 0 })
	begin := h.now()
	switch n := r.IntN(10); {
	case n < 5 && len(standing) < maxStanding || len(standing) == 0:
		s := &kept{name: fmt.Sprintf("s%d", begin), making: span{begin: begin}}
		h.kept = append(h.kept, s)
		return h.do(&s.making, "snapshot", "create", "vol", "--name", s.name)
	case n < 8:
		s := standing[r.IntN(len(standing))]
		s.giving.begin = begin
		return h.do(&s.giving, "snapshot", "delete", "vol@"+s.name)
	default:
		size := h.sizes[len(h.sizes)-1].size + int64(1+r.IntN(256))*blockSize
		h.sizes = append(h.sizes, sized{size, span{begin: begin}})
		return h.do(&h.sizes[len(h.sizes)-1].span, "volume", "grow", "vol", strconv.FormatInt(size, 10))
	}
}

func (h *history) do(s *span, args ...string) error {
	if _, errout, err := h.d.try(args...); err != nil {
		return fmt.Errorf("varve %q: %w\n%s", args, err, errout)
	}
	s.end = h.now()
	return nil
}

// String lists the acts, for whoever looks for the reason of a failure.
func (h *history) String() string {
	var b strings.Builder
	for _, s := range h.kept {
		fmt.Fprintf(&b, "snapshot %s: made %v, deleted %v\n", s.name, s.making, s.giving)
	}
	for _, s := range h.sizes {
		fmt.Fprintf(&b, "%d bytes: %v\n", s.size, s.span)
	}
	return b.String()
}

// check compares what a daemon has after a crash with what it may have. at is
// the moment of the crash.
func (h *history) check(d *daemon, at int) error {
	return errors.Join(h.checkVolume(d, at), h.checkSnapshots(d, at))
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
	return h.checkContent(content, at)
}

// checkContent compares the content of the volume or a snapshot with what the
// writers were promised up to a moment.
func (h *history) checkContent(content []byte, at int) error {
	for i, l := range h.ledgers {
		if err := l.check(content, at); err != nil {
			return fmt.Errorf("writer %d: %w", i, err)
		}
	}
	if rest := bytes.Trim(content[len(h.ledgers)*writerBlocks*blockSize:], "\x00"); len(rest) > 0 {
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
			all = errors.Join(all, h.checkSnapshot(d, s))
		}
	}
	if unknown > making { // one that has not reached the catalog may have another name
		all = errors.Join(all, fmt.Errorf("of the snapshots %s, %d are not known", listed, unknown))
	}
	return all
}

// checkSnapshot compares a snapshot with what it was when it was first read. The
// first time it must have what was promised before it was made.
func (h *history) checkSnapshot(d *daemon, s *kept) error {
	content, err := h.export(d, "vol@"+s.name)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if s.sum == [sha256.Size]byte{} {
		s.sum = sum
		if err := h.checkContent(content, s.making.begin); err != nil {
			return fmt.Errorf("snapshot %s: %w", s.name, err)
		}
	}
	if s.sum != sum {
		return fmt.Errorf("snapshot %s has another content", s.name)
	}
	return nil
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
	content, err := h.export(h.d, "vol")
	if err != nil {
		return err
	}
	for _, l := range h.ledgers {
		l.settle(content)
	}
	listed, err := listSnapshots(h.d)
	if err != nil {
		return err
	}
	h.kept = slices.DeleteFunc(h.kept, func(s *kept) bool { return s.making.end == 0 && !slices.Contains(listed, s.name) })
	for _, s := range h.kept {
		if s.making.end == 0 {
			s.making.end = h.now()
		}
		if s.giving.begin > 0 && s.giving.end == 0 {
			if slices.Contains(listed, s.name) {
				s.giving = span{}
			} else {
				s.giving.end = h.now()
			}
		}
	}
	last := &h.sizes[len(h.sizes)-1]
	if last.end == 0 {
		if h.d.value("size_bytes", "volume", "show", "vol", "--long") == strconv.FormatInt(last.size, 10) {
			last.end = h.now()
		} else {
			h.sizes = h.sizes[:len(h.sizes)-1]
		}
	}
	return nil
}
