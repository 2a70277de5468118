package main

import (
	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) backupSetVerb() *cli.Command {
	command := p.verb("set", "BACKUP...", "change what backups are called and what is kept with them, on every host", []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "its new `NAME`; of one backup only"},
		&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
		propertyFlag(),
		&cli.BoolFlag{Name: "no-property", Usage: "remove all properties first"},
		&cli.BoolFlag{Name: "protected", Usage: "refuse to delete them"},
		&cli.BoolFlag{Name: "unprotected", Usage: "let them be deleted"},
		&cli.StringFlag{Name: "state", Usage: "`STATE` to set, as by reset-state: available or error"},
	}, (*call).backupSet)
	command.Description = "All but the state is written into the target; other hosts read it with their next look at its list."
	return command
}

func (p *program) backupUnsetVerb() *cli.Command {
	return p.verb("unset", "BACKUP...", "remove properties of backups", []cli.Flag{
		&cli.StringSliceFlag{Name: "property", Usage: "`KEY` to remove; may repeat"},
	}, (*call).backupUnset)
}

// propertyFlag is that of whatever keeps properties.
func propertyFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "property", Usage: "`KEY=VALUE` to keep with it; may repeat"}
}

func (c *call) backupSet() error {
	change, err := c.backupChange()
	if err != nil {
		return err
	}
	state := c.String("state")
	switch {
	case change == nil && state == "":
		return usagef("backup set: say what to set, such as --name, --property or --protected")
	case c.IsSet("state") && state != "available" && state != "error":
		return usagef("backup set: --state is available or error, not %q", state)
	case c.IsSet("name") && len(c.args) > 1:
		return usagef("backup set: --name is for one backup, not for %d", len(c.args))
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	return c.eachBackup(client, "set", func(ref string) error {
		if state != "" {
			if err := client.ResetState(c.ctx, "backup", ref, state); err != nil {
				return err
			}
		}
		if change == nil {
			return nil
		}
		_, err := client.ChangeBackup(c.ctx, ref, *change)
		return err
	})
}

// backupChange is what the flags say, nil if that is nothing.
func (c *call) backupChange() (*api.BackupChange, error) {
	var change api.BackupChange
	said := false
	for name, to := range map[string]**string{"name": &change.Name, "description": &change.Description} {
		if c.IsSet(name) {
			value := c.String(name)
			*to, said = &value, true
		}
	}
	properties, err := parseProperties("backup set", c.StringSlice("property"))
	if err != nil {
		return nil, err
	}
	change.SetMetadata, change.NoMetadata = properties, c.Bool("no-property")
	on, off := c.Bool("protected"), c.Bool("unprotected")
	if on && off {
		return nil, usagef("backup set: --protected or --unprotected, not both")
	}
	if on || off {
		change.Protected = &on
	}
	if !said && len(properties) == 0 && !change.NoMetadata && change.Protected == nil {
		return nil, nil
	}
	return &change, nil
}

func (c *call) backupUnset() error {
	keys := c.StringSlice("property")
	if len(keys) == 0 {
		return usagef("backup unset: name what to remove: --property KEY")
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	return c.eachBackup(client, "change", func(ref string) error {
		_, err := client.ChangeBackup(c.ctx, ref, api.BackupChange{UnsetMetadata: keys})
		return err
	})
}
