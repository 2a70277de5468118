package main

import (
	"fmt"
	"iter"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

// maxDiffRows bounds what a table of extents keeps in memory to be drawn.
const maxDiffRows = 100_000

// diffHelp is what the help of both diffs says.
const diffHelp = "It is known from the maps; no data is read. Kind is what the second one reads there: data, or zero. " +
	"The first may be the newer one. -o value prints extents as they come, however many."

func (p *program) diffVerb() *cli.Command {
	command := p.verb("diff", "SNAPSHOT SNAPSHOT", "print the extents that changed between two snapshots of a volume",
		outputFlags(), (*call).snapshotDiff)
	command.Description = diffHelp + " The second may be named without its volume."
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
	return c.printDiff(out, client.DiffSnapshots(c.ctx, c.args[0], c.args[1]))
}

// printDiff prints extents, and how many bytes they are.
func (c *call) printDiff(out format, extents iter.Seq2[api.Extent, error]) (err error) {
	columns := []string{"Offset", "Length", "Kind"}
	var rows []row
	total := map[string]int64{} // bytes by kind
	count := 0
	for e, err := range extents {
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
			err = fmt.Errorf("%s: there are more than %d extents: -o value prints them as they come", commandName(c.Context), maxDiffRows)
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
	things := "extents"
	if count == 1 {
		things = "extent"
	}
	fmt.Fprintf(c.stderr, "%d %s: %s of data, %s of zeros\n", count, things, formatBytes(total["data"]), formatBytes(total["zero"]))
	return err
}
