package main

import "github.com/urfave/cli/v2"

// resetVerb is OpenStack's reset-state, of volumes, snapshots and backups.
func (p *program) resetVerb(kind, args string) *cli.Command {
	command := p.verb("reset-state", args, "set the state of a "+kind+", for an operator who knows better",
		[]cli.Flag{&cli.StringFlag{Name: "state", Usage: "`STATE` to set: available or error"}},
		func(c *call) error { return c.resetState(kind) })
	command.Description = "Only the record changes. It is refused while an operation is at work, which can be canceled, and where the state would be untrue: " +
		"a backup is available if its target has it, a volume if it opens, a snapshot if the volume has it."
	return command
}

func (c *call) resetState(kind string) error {
	state := c.String("state")
	if state != "available" && state != "error" {
		return usagef("%s reset-state: --state is available or error, not %q", kind, state)
	}
	if kind == "backup" {
		client, err := c.backupClient()
		if err != nil {
			return err
		}
		return c.eachBackup(client, "reset", func(ref string) error { return client.ResetState(c.ctx, kind, ref, state) })
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each(kind, "reset", func(name string) error { return client.ResetState(c.ctx, kind, name, state) })
}
