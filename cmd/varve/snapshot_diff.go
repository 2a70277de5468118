package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// maxDiffRows bounds what a table of extents keeps in memory to be drawn.
const maxDiffRows = 100_000

func (p *program) diffVerb() *cli.Command {
	command := p.verb("diff", "SNAPSHOT SNAPSHOT", "print the extents that changed between two snapshots of a volume",
		outputFlags(), (*call).snapshotDiff)
	command.Description = "It is known from the maps; no data is read. Kind is what the second snapshot reads there: data, or zero. " +
		"The first may be the newer one. The second may be named without its volume. -o value prints extents as they come, however many."
	return command
}

func (c *call) snapshotDiff() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	columns := []string{"Offset", "Length", "Kind"}
	var rows []row
	total := map[string]int64{} // bytes by kind
	count := 0
	for e, err := range client.DiffSnapshots(c.ctx, c.args[0], c.args[1]) {
		if err != nil {
			return err
		}
		r := row{e.Offset, e.Length, e.Kind}
		total[e.Kind] += e.Length
		count++
		switch {
		case out.kind == "value":
			err = out.list(c.stdout, columns, []row{r})
		case len(rows) == maxDiffRows:
			err = fmt.Errorf("snapshot diff: there are more than %d extents: -o value prints them as they come", maxDiffRows)
		default:
			rows = append(rows, r)
		}
		if err != nil {
			return err
		}
	}
	if out.kind != "value" {
		err = out.list(c.stdout, columns, rows)
	}
	fmt.Fprintf(c.stderr, "%d extents: %s of data, %s of zeros\n", count, formatBytes(total["data"]), formatBytes(total["zero"]))
	return err
}
