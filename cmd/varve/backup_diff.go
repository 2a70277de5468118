package main

import (
	"fmt"
	"iter"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
	"varve/layers"
)

func (p *program) backupDiffVerb() *cli.Command {
	command := p.verb("diff", "BACKUP BACKUP", "print the extents that changed between two backups of a volume in a target",
		outputFlags(), (*call).backupDiff)
	command.Description = diffHelp + " A block that was written again with what it held is printed too, unless it is zero."
	return command
}

func (c *call) backupDiff() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.directURL() != "" {
		return c.directDiff(out)
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	from, err := c.chosen(client, c.args[0])
	if err != nil {
		return err
	}
	to, err := c.chosen(client, c.args[1])
	if err != nil {
		return err
	}
	return c.printDiff(out, client.DiffBackups(c.ctx, from, to))
}

// directDiff compares two backups in the target at a URL.
func (c *call) directDiff(out format) error {
	t, err := c.openDirect()
	if err != nil {
		return err
	}
	defer t.Close()
	var ids [2]layers.ID
	for i := range ids {
		b, err := t.find(c, c.args[i])
		if err != nil {
			return err
		}
		if ids[i], err = layers.ParseID(b.ID); err != nil {
			return err
		}
	}
	return c.printDiff(out, t.diff(c, ids[0], ids[1]))
}

func (t *bareTarget) diff(c *call, from, to layers.ID) iter.Seq2[api.Extent, error] {
	return func(yield func(api.Extent, error) bool) {
		for e, err := range t.Diff(c.ctx, from, to) {
			if err != nil {
				yield(api.Extent{}, fmt.Errorf("in %s: %w", t.url, err))
				return
			}
			if !yield(api.DescribeExtent(e), nil) {
				return
			}
		}
	}
}
