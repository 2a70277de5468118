package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) checkVerb() *cli.Command {
	command := p.verb("check", "VOLUME", "read all that a volume keeps and compare it with its checksums",
		outputFlags(moveFlags(
			&cli.BoolFlag{Name: "repair", Usage: "write damaged blocks anew from the backups that have them"})...),
		(*call).volumeCheck)
	command.Description = "The volume may be in use. What was written since the newest snapshot has no checksums yet. What is damaged is listed with its place; " +
		"a block is repaired only by bytes that match its checksum. The exit code is 8 if something is damaged and left so."
	return command
}

func (c *call) volumeCheck() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	o, err := client.CheckVolume(c.ctx, c.args[0], c.Bool("repair"))
	if err != nil {
		return err
	}
	failed := c.follow(client, o)
	var quiet quietError
	if c.Bool("no-wait") && !c.Bool("wait") || errors.As(failed, &quiet) {
		return failed
	}
	if o, err = client.Operation(c.ctx, o.ID, 0); err != nil {
		return errors.Join(failed, err)
	}
	var rows []row
	for _, f := range o.Findings {
		rows = append(rows, row{orNone(f.LayerID), f.File, f.Offset, f.Expected, f.Found, f.Repaired})
	}
	if err := out.list(c.stdout, []string{"Layer", "File", "Offset", "Expected", "Found", "Repaired"}, rows); err != nil {
		return err
	}
	return failed
}

// findingTexts are what a check found, a text each.
func findingTexts(o api.Operation) []string {
	texts := []string{}
	for _, f := range o.Findings {
		state := "damaged"
		if f.Repaired {
			state = "repaired"
		}
		texts = append(texts, fmt.Sprintf("%s at %d: %s", f.File, f.Offset, state))
	}
	return texts
}
