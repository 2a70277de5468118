package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// clone is a clone of the volume, or of a snapshot of it. Its writer writes for
// a while once it is made.
type clone struct {
	name    string
	begin   int       // the moment of what it is made of
	of      []*ledger // of what it is made of
	ledgers []*ledger // its own; nil while nobody has read it
	making  span
	giving  span // its deletion; zero: never
}

// clonePromises is how many promises the writer of a clone waits for.
const clonePromises = 15

func (h *history) cloneVolume() error {
	now := h.now()
	return h.clone(&clone{begin: now, of: h.line().ledgers, making: span{begin: now}}, "vol")
}

func (h *history) cloneSnapshot(s *kept) error {
	content, err := h.checkSnapshot(h.d, s)
	if err != nil {
		return err
	}
	c := &clone{making: span{begin: h.now()}}
	for _, l := range s.of.ledgers {
		c.of = append(c.of, l.fork(content)) // exactly that
	}
	return h.clone(c, "vol@"+s.name)
}

// clone makes a clone, reads it and lets a client use it.
func (h *history) clone(c *clone, origin string) error {
	c.name = fmt.Sprintf("c%d", c.making.begin)
	h.clones = append(h.clones, c)
	if err := h.do(&c.making, "volume", "clone", origin, c.name); err != nil {
		return err
	}
	if err := h.readClone(h.d, c); err != nil {
		return err
	}
	w, err := h.startWriter(c.name, c.ledgers[0])
	if err != nil {
		return err
	}
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for late, ended := time.After(patience), false; !ended && c.ledgers[0].promised() < clonePromises; {
		select {
		case <-look.C:
		case <-w.ended: // its daemon has
			ended = true
		case <-late:
			return fmt.Errorf("after %v the writer of clone %s has only %d promises", patience, c.name, c.ledgers[0].promised())
		}
	}
	w.stop()
	if err := awaitIdle(h.d, c.name); err != nil {
		return err
	}
	return h.checkClone(h.d, c, h.now())
}

// readClone compares a new clone with what it was made of.
func (h *history) readClone(d *daemon, c *clone) error {
	content, err := h.export(d, c.name)
	if err != nil {
		return err
	}
	if err := checkSealed(c.of, content, c.begin); err != nil {
		return fmt.Errorf("clone %s: %w", c.name, err)
	}
	for _, l := range c.of {
		c.ledgers = append(c.ledgers, l.fork(content))
	}
	return nil
}

func (h *history) deleteClone(c *clone) error {
	c.giving.begin = h.now()
	return h.do(&c.giving, "volume", "delete", c.name)
}

// checkClone compares a clone with what its writer was promised up to a moment.
func (h *history) checkClone(d *daemon, c *clone, at int) error {
	if c.ledgers == nil {
		return h.readClone(d, c)
	}
	content, err := h.export(d, c.name)
	if err == nil {
		err = checkContent(c.ledgers, content, at)
	}
	if err != nil {
		return fmt.Errorf("clone %s: %w", c.name, err)
	}
	return nil
}

// checkClones looks which clones are there after a crash, and at each.
func (h *history) checkClones(d *daemon, at int) error {
	volumes, err := listVolumes(d)
	if err != nil {
		return err
	}
	var all error
	for _, c := range h.clones {
		there := slices.ContainsFunc(volumes, func(v listedVolume) bool { return v.Name == c.name })
		switch {
		case !there && c.making.done(at) && !c.giving.begun(at):
			all = errors.Join(all, fmt.Errorf("clone %s is lost", c.name))
		case there && (!c.making.begun(at) || c.giving.done(at)):
			all = errors.Join(all, fmt.Errorf("clone %s is there and should not", c.name))
		case there:
			all = errors.Join(all, h.checkClone(d, c, at))
		}
	}
	return all
}

// settleClones looks how clones and their deletions without an answer have
// ended.
func (h *history) settleClones() error {
	volumes, err := listVolumes(h.d)
	if err != nil {
		return err
	}
	there := func(c *clone) bool {
		return slices.ContainsFunc(volumes, func(v listedVolume) bool { return v.Name == c.name })
	}
	h.clones = slices.DeleteFunc(h.clones, func(c *clone) bool { return c.making.end == 0 && !there(c) })
	for _, c := range h.clones {
		if c.making.end == 0 {
			c.making.end = h.now()
		}
		c.giving.settle(h, there(c))
		if !there(c) {
			continue
		}
		content, err := h.export(h.d, c.name)
		if err != nil {
			return err
		}
		for _, l := range c.ledgers {
			l.settle(content)
		}
	}
	return nil
}

// listedVolume is a volume as the list shows it.
type listedVolume struct{ ID, Name, Status string }

func listVolumes(d *daemon) ([]listedVolume, error) {
	out, errout, err := d.try("volume", "list", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("volume list: %w\n%s", err, errout)
	}
	var list []listedVolume
	return list, json.Unmarshal([]byte(out), &list)
}

// checkSound has every volume check itself, and looks that none is in a status
// that somebody has to get it out of, and that no folder is left of one that is
// not there.
func checkSound(d *daemon) error {
	volumes, err := listVolumes(d)
	if err != nil {
		return err
	}
	var all error
	folders := []string{}
	for _, v := range volumes {
		folders = append(folders, v.ID)
		if v.Status != "available" && v.Status != "in-use" {
			all = errors.Join(all, fmt.Errorf("volume %s is %s", v.Name, v.Status))
		}
		if out, errout, err := d.try("volume", "check", v.ID); err != nil {
			all = errors.Join(all, fmt.Errorf("volume check %s: %w\n%s%s", v.Name, err, out, errout))
		}
	}
	entries, err := os.ReadDir(filepath.Join(d.state, "volumes"))
	if err != nil {
		return errors.Join(all, err)
	}
	for _, e := range entries {
		if !slices.Contains(folders, e.Name()) {
			all = errors.Join(all, fmt.Errorf("there is a folder of volume %s, which is not there", e.Name()))
		}
	}
	return all
}
