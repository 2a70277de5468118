package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// actKind is something that a history does.
type actKind byte

const (
	actSnapshot actKind = iota
	actDelete           // of a snapshot
	actGrow
	actClone     // of a snapshot; then clients use it
	actCloneLive // of the volume as it is; then clients use it
	actUnclone   // deletion of a clone
	actRevert
	actCheck // of all data, with volume check
)

// cycle is what comes in some order before any comes again. Discards are among
// what the writers do.
var cycle = []actKind{
	actSnapshot, actSnapshot, actSnapshot, actSnapshot, actDelete, actDelete,
	actGrow, actClone, actCloneLive, actUnclone, actRevert, actCheck,
}

// act does the next thing. One that cannot be done now is a snapshot instead, or
// the deletion of one. After an error the act has no answer.
func (h *history) act(r *rand.Rand) error {
	if len(h.deck) == 0 {
		h.deck = slices.Clone(cycle)
		r.Shuffle(len(h.deck), func(i, j int) { h.deck[i], h.deck[j] = h.deck[j], h.deck[i] })
	}
	kind := h.deck[0]
	h.deck = h.deck[1:]
	standing := slices.DeleteFunc(slices.Clone(h.kept), func(s *kept) bool { return s.giving.begin > 0 })
	clones := slices.DeleteFunc(slices.Clone(h.clones), func(c *clone) bool { return c.giving.begin > 0 })
	switch none, full := len(standing) == 0, len(standing) >= maxStanding; {
	case kind == actUnclone && len(clones) > 0, (kind == actClone || kind == actCloneLive) && len(clones) >= maxClones:
		return h.deleteClone(clones[r.IntN(len(clones))])
	case kind == actCloneLive:
		return h.cloneVolume()
	case kind == actClone && !none:
		return h.cloneSnapshot(standing[r.IntN(len(standing))])
	case kind == actGrow:
		return h.grow(int64(1+r.IntN(256)) * blockSize)
	case kind == actCheck:
		return checkSound(h.d)
	case kind == actRevert && !none && !full:
		return h.revert(standing[r.IntN(len(standing))])
	case full, kind == actDelete && !none:
		return h.deleteSnapshot(standing[r.IntN(len(standing))])
	}
	s := &kept{of: h.line(), making: span{begin: h.now()}}
	s.name = fmt.Sprintf("s%d", s.making.begin)
	h.kept = append(h.kept, s)
	return h.do(&s.making, "snapshot", "create", "vol", "--name", s.name)
}

func (h *history) do(s *span, args ...string) error {
	if _, errout, err := h.d.try(args...); err != nil {
		return fmt.Errorf("varve %q: %w\n%s", args, err, errout)
	}
	s.end = h.now()
	return nil
}

func (h *history) deleteSnapshot(s *kept) error {
	s.giving.begin = h.now()
	return h.do(&s.giving, "snapshot", "delete", "vol@"+s.name)
}

func (h *history) grow(more int64) error {
	size := h.sizes[len(h.sizes)-1].size + more
	h.sizes = append(h.sizes, sized{size, span{begin: h.now()}})
	return h.do(&h.sizes[len(h.sizes)-1].span, "volume", "grow", "vol", strconv.FormatInt(size, 10))
}

// revert lets the writers rest meanwhile: nobody may have the volume open.
func (h *history) revert(to *kept) error {
	content, err := h.checkSnapshot(h.d, to)
	if err != nil {
		return err
	}
	h.rest()
	if err := awaitIdle(h.d, "vol"); err != nil {
		return err
	}
	old := h.line()
	next := &line{began: span{begin: h.now()}}
	for _, l := range old.ledgers {
		next.ledgers = append(next.ledgers, l.fork(content))
	}
	safety := &kept{of: old, making: next.began}
	h.kept = append(h.kept, safety)
	h.mu.Lock()
	h.lines = append(h.lines, next)
	h.mu.Unlock()
	_, errout, err := h.d.try("volume", "revert", "vol", to.name)
	if err != nil {
		return fmt.Errorf("volume revert vol %s: %w\n%s", to.name, err, errout)
	}
	next.began.end = h.now()
	safety.making = next.began
	if _, name, ok := strings.Cut(errout, "is snapshot "); ok {
		safety.name, _, _ = strings.Cut(name, ";")
	}
	if !strings.HasPrefix(safety.name, safetyPrefix) {
		return fmt.Errorf("volume revert does not name the safety snapshot: %s", errout)
	}
	return h.write()
}

// safetyPrefix is what the name of the snapshot that a revert makes begins with.
const safetyPrefix = "before-revert-"

// lineAt is what the volume must be after a crash: what it was, or what the
// revert that was under way makes of it. The safety snapshot tells which.
func (h *history) lineAt(d *daemon, at int) (*line, error) {
	listed, err := listSnapshots(d)
	if err != nil {
		return nil, err
	}
	now := h.lines[0]
	for _, l := range h.lines[1:] {
		if l.began.done(at) || l.began.begun(at) && slices.Contains(listed, h.safetyOf(l, listed)) {
			now = l
		}
	}
	return now, nil
}

// safetyOf is the name of the safety snapshot of the revert that began a line;
// "" if it is not there. One that was not answered is the one that nobody knows.
func (h *history) safetyOf(l *line, listed []string) string {
	known := map[string]bool{}
	for _, s := range h.kept {
		if s.name != "" && s.making.begin == l.began.begin {
			return s.name
		}
		known[s.name] = true
	}
	for _, name := range listed {
		if strings.HasPrefix(name, safetyPrefix) && !known[name] {
			return name
		}
	}
	return ""
}

// settleRevert looks how a revert without an answer has ended.
func (h *history) settleRevert(listed []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.lines[len(h.lines)-1]
	if last.began.end > 0 {
		return
	}
	name := h.safetyOf(last, listed)
	if name == "" {
		h.lines = h.lines[:len(h.lines)-1]
		return
	}
	last.began.end = h.now()
	for _, s := range h.kept {
		if s.making.begin == last.began.begin {
			s.name = name
		}
	}
}

// awaitIdle returns when nobody has a volume open any more.
func awaitIdle(d *daemon, name string) error {
	for late := time.Now().Add(patience); time.Now().Before(late); {
		out, errout, err := d.try("volume", "show", name, "-o", "value", "-c", "status")
		if err != nil {
			return fmt.Errorf("volume show: %w\n%s", err, errout)
		}
		if strings.TrimSpace(out) == "available" {
			return nil
		}
	}
	return fmt.Errorf("the volume %s is still in use after %v", name, patience)
}
