package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"varve/catalog"
	"varve/layers"
)

const kindCheck = "volume check"

// maxFindings is how many findings an operation keeps: its record has to hold
// them all.
const maxFindings = 40

// CheckVolume begins to read all that a volume keeps and to compare it with its
// checksums. With repair, damaged blocks are written anew from the backups that
// have them. The volume may be in use.
//
// A crash leaves nothing to put in order: a check changes nothing, and a block is
// damaged or repaired.
func (a *Agent) CheckVolume(ctx context.Context, ref string, repair bool) (catalog.Operation, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return catalog.Operation{}, err
	}
	a.mu.Lock()
	data, err := v.usable(record)
	release := func() {}
	if err == nil {
		release = a.hold(v, v.id) // It is not deleted meanwhile.
	}
	a.mu.Unlock()
	if err != nil {
		return catalog.Operation{}, err
	}
	c := &checking{a: a, record: record, data: data, repair: repair}
	return a.start(job{
		kind:    kindCheck,
		subject: v.id,
		begin:   func(*catalog.Tx) error { return nil },
		work:    c.work,
		settle:  func(*catalog.Tx, error) error { return nil },
		release: release,
	})
}

// A checking is a check that runs.
type checking struct {
	a        *Agent
	record   catalog.Volume
	data     *layers.Volume
	repair   bool
	report   layers.CheckReport
	repaired []bool // by finding
	sources  []string
	skipped  []error // backups that could not be read
}

func (c *checking) work(ctx context.Context, op *operation) error {
	leave, err := c.a.place(ctx)
	if err != nil {
		return err
	}
	defer leave()
	pieces := new(pieces)
	c.report, err = c.data.Check(ctx, layers.CheckOptions{Progress: op.progress, Pace: pieces.next})
	pieces.end()
	if err != nil {
		return dataError(kindCheck, err)
	}
	c.repaired = make([]bool, len(c.report.Findings))
	backups, err := c.backups()
	if err != nil {
		return err
	}
	if c.repair && c.damaged() > 0 {
		err = c.repairFrom(ctx, backups)
	}
	op.change(func(r *catalog.Operation) { r.Findings, r.Damage = c.findings(), c.damaged() })
	op.note(c.note())
	if err != nil {
		return err
	}
	return c.verdict(backups)
}

// damaged is how many places are damaged still.
func (c *checking) damaged() int64 {
	left := c.report.Count
	for _, repaired := range c.repaired {
		if repaired {
			left--
		}
	}
	return left
}

// backups returns those that may have the volume's blocks, the newest first:
// its own and those of the volumes that it was cloned from.
func (c *checking) backups() ([]catalog.Backup, error) {
	all, err := list(c.a, catalog.Backups)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(b catalog.Backup) bool {
		return !whole(b) || b.VolumeID != c.record.ID && !slices.Contains(c.record.Origins, b.VolumeID)
	})
	slices.SortStableFunc(all, func(x, y catalog.Backup) int { return y.DataTimestamp.Compare(x.DataTimestamp) })
	return all, nil
}

// repairFrom tries one backup after the other until nothing is left to repair.
// What a backup has in a block's place is taken only if it is what the checksum
// is of, so that any may be tried.
func (c *checking) repairFrom(ctx context.Context, backups []catalog.Backup) error {
	for _, b := range backups {
		if !slices.ContainsFunc(c.report.Findings, func(f layers.Finding) bool { return f.Data }) || c.damaged() == 0 {
			return nil
		}
		switch err := c.repairFromBackup(ctx, b); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.skipped = append(c.skipped, fmt.Errorf("backup %s: %w", b.Name, err))
		}
	}
	return nil
}

func (c *checking) repairFromBackup(ctx context.Context, b catalog.Backup) error {
	image, err := c.a.openBackupImage(ctx, b.ID)
	if err != nil {
		return err
	}
	defer image.Close() // Only read.
	count := 0
	for i, f := range c.report.Findings {
		if c.repaired[i] || !f.Data {
			continue
		}
		fixed, _, err := c.data.Repair(ctx, f.Layer, f.Off, layers.BlockSize, image)
		if err != nil {
			return err
		}
		if fixed > 0 {
			c.repaired[i] = true
			count++
		}
	}
	if count > 0 {
		c.sources = append(c.sources, fmt.Sprintf("%d from backup %s", count, b.Name))
	}
	return nil
}

// findings are the first of the report, as records keep them: what is left
// first.
func (c *checking) findings() []catalog.Finding {
	var list []catalog.Finding
	for _, repaired := range []bool{false, true} {
		for i, f := range c.report.Findings {
			if c.repaired[i] == repaired && len(list) < maxFindings {
				list = append(list, catalog.Finding{
					Layer: f.Layer, File: filepath.Base(f.Path), Offset: f.Off, Expected: f.Expected, Found: f.Found, Repaired: repaired,
				})
			}
		}
	}
	return list
}

func (c *checking) note() string {
	text := fmt.Sprintf("%d MiB of data were compared with their checksums, %d MiB have none yet", c.report.Checked>>20, c.report.Unchecked>>20)
	if c.report.Reclaimed > 0 {
		text += fmt.Sprintf("; %d MiB that nothing needed were given back", c.report.Reclaimed>>20)
	}
	if len(c.sources) > 0 {
		text += fmt.Sprintf("; damaged blocks were repaired: %s", strings.Join(c.sources, ", "))
	}
	return shorten(text)
}

// verdict is nil if nothing is damaged any more, or says what can be done.
func (c *checking) verdict(backups []catalog.Backup) error {
	left := c.damaged()
	if left == 0 {
		return nil
	}
	i := slices.Index(c.repaired, false)
	blocks := slices.ContainsFunc(c.report.Findings, func(f layers.Finding) bool { return f.Data })
	advice := "there is no backup to repair or restore it from"
	switch {
	case len(backups) > 0 && blocks && !c.repair:
		advice = fmt.Sprintf("blocks may be in a backup: varve volume check %s --repair", c.record.Name)
	case c.repair && c.report.Count > int64(len(c.report.Findings)):
		advice = "there are more than are repaired at once: do it again"
	case len(backups) > 0:
		b := backups[0]
		advice = fmt.Sprintf("it cannot be repaired from a backup; the newest, %s of %s, can be restored: varve backup restore %s",
			b.Name, b.DataTimestamp.Format("2006-01-02 15:04"), b.ID)
	}
	first := "more than are listed"
	if i >= 0 {
		first = "the first is " + c.report.Findings[i].Error()
	}
	return errors.Join(append([]error{fail(Corrupt, "%d places of volume %s are damaged, %s; %s", left, c.record.Name, first, advice)}, c.skipped...)...)
}
