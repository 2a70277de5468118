package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"varve/agent"
)

func (p *program) catalogCommand() *cli.Command {
	return noun("catalog", "names and history of volumes, snapshots and backups",
		p.verb("rebuild", "", "make the catalog of a state folder anew, from its copy, the volumes and the targets; no daemon may run on it",
			outputFlags(), (*call).catalogRebuild))
}

func (c *call) catalogRebuild() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.directURL() != "" {
		return usagef("catalog rebuild: a target has no catalog: name the state folder with --state")
	}
	state, err := c.state()
	if err != nil {
		return err
	}
	places := stores{c.environ}
	r, err := agent.Rebuild(c.ctx, agent.Config{
		State: state, OpenStore: places.open, CreateStore: places.create, Log: newLog(c.stderr, true),
	})
	if err != nil {
		return err
	}
	for _, problem := range r.Problems {
		c.complain("varve: ", errors.New(problem))
	}
	var old any
	if r.Old != "" {
		old = r.Old
	}
	return out.show(c.stdout, []field{
		{"backups", int64(r.Backups)},
		{"old_catalog", old},
		{"snapshots", int64(r.Snapshots)},
		{"targets", int64(r.Targets)},
		{"volumes", int64(r.Volumes)},
	})
}
