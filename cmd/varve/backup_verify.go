package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/repo"
	"varve/layers"
)

func (p *program) backupVerifyVerb() *cli.Command {
	command := p.verb("verify", "BACKUP", "check that a backup is whole in its target",
		outputFlags(moveFlags(&cli.BoolFlag{Name: "deep", Usage: "read all its data too"})...), (*call).backupVerify)
	command.Description = "Without --deep its map is read, and that the objects with its data are there and have the right length. " +
		"What is damaged is listed with its place, and the exit code is then 8. " +
		"A restore checks all that it reads; \"target verify\" checks all backups of a target, each object once, and repairs."
	return command
}

func (c *call) backupVerify() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.directURL() != "" {
		return c.directVerify(out, c.args[0])
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	ref, err := c.chosen(client, c.args[0])
	if err != nil {
		return err
	}
	o, err := client.VerifyBackup(c.ctx, ref, c.Bool("deep"))
	if err != nil {
		return err
	}
	return c.followFindings(client, o, func(found []api.Finding) error { return listPlaces(out, c, found) })
}

// directVerify checks a backup of the target at the URL of --target.
func (c *call) directVerify(out format, ref string) error {
	t, b, err := c.openBackup(ref)
	if err != nil {
		return err
	}
	defer t.Close()
	level := repo.Map
	if c.Bool("deep") {
		level = repo.Deep
	}
	id, err := layers.ParseID(b.ID)
	if err != nil {
		return err
	}
	bar := newProgress(c.stderr, "backup verify", c.onTerminal())
	report, err := t.Verify(c.ctx, id, repo.VerifyOptions{Level: level, Progress: bar.update})
	bar.finish()
	if err == nil || len(report.Damage) > 0 {
		var places []api.Finding
		for _, damage := range report.Damage {
			place := api.Finding{Found: agent.DamageText(damage)}
			var d *repo.DamageError
			if errors.As(damage, &d) {
				place.File, place.Offset = d.Object, d.Offset
			}
			places = append(places, place)
		}
		if listed := listPlaces(out, c, places); listed != nil {
			return listed
		}
	}
	if err != nil {
		return fmt.Errorf("verify backup %s in %s: %w", ref, t.url, err)
	}
	fmt.Fprintf(c.stderr, "backup verify: %s\n", agent.WholeNote(level, report))
	return nil
}

// listPlaces prints a row for each place of a target that is damaged.
func listPlaces(out format, c *call, places []api.Finding) error {
	var rows []row
	for _, f := range places {
		rows = append(rows, row{f.File, f.Offset, f.Found})
	}
	return out.list(c.stdout, []string{"Object", "Offset", "Found"}, rows)
}
