package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) revertVerb() *cli.Command {
	command := p.verb("revert", "VOLUME SNAPSHOT", "make a volume read what one of its snapshots holds",
		outputFlags(), (*call).volumeRevert)
	command.Description = "The present state is kept first, as a snapshot before-revert-TIME, and nothing is lost: it and the snapshots after SNAPSHOT stay, " +
		"as a branch, and can be reverted to. Nobody may have the volume open; volume attach --maintenance keeps clients out. The volume keeps its size."
	return command
}

func (c *call) volumeRevert() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	v, safety, err := client.RevertVolume(c.ctx, c.args[0], c.args[1])
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "the state before is snapshot %s; go back to it with: varve volume revert %s %s\n", safety.Name, printable(v.Name), safety.Name)
	return out.show(c.stdout, volumeFields(v))
}

func (p *program) cloneVerb() *cli.Command {
	return p.verb("clone", "VOLUME[@SNAPSHOT] NAME", "make a volume that shares the data of another or of its snapshot and changes by itself",
		outputFlags(append(quiesceFlags(),
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the clone, if larger"},
			&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
			&cli.StringSliceFlag{Name: "property", Usage: "`KEY=VALUE` to keep with it; may repeat"})...),
		(*call).volumeClone)
}

func (c *call) volumeClone() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	n := api.NewVolume{Name: c.args[1]}
	if strings.Contains(c.args[0], "@") {
		n.SnapshotID = c.args[0]
	} else {
		n.SourceVolID = c.args[0]
	}
	return c.createVolume(out, n)
}
