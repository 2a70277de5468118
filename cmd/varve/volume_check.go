package main

import (
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
	return c.followFindings(client, o, func(found []api.Finding) error {
		var rows []row
		for _, f := range found {
			rows = append(rows, row{orNone(f.LayerID), f.File, f.Offset, f.Expected, f.Found, f.Repaired})
		}
		return out.list(c.stdout, []string{"Layer", "File", "Offset", "Expected", "Found", "Repaired"}, rows)
	})
}

// findingTexts are what a check found, a text each.
func findingTexts(o api.Operation) []string {
	texts := []string{}
	for _, f := range o.Findings {
		if f.File == "" { // of a restore past damage
			for _, b := range f.Backups {
				for _, r := range b.Ranges {
					texts = append(texts, fmt.Sprintf("lost: %d-%d", r.Offset, r.Offset+r.Length-1))
				}
			}
			continue
		}
		state := "damaged"
		if f.Repaired {
			state = "repaired"
		}
		texts = append(texts, fmt.Sprintf("%s at %d: %s", f.File, f.Offset, state))
	}
	return texts
}
