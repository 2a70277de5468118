package main

import (
	"maps"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) setVerb() *cli.Command {
	command := p.verb("set", "VOLUME", "change a volume's name, texts and hooks",
		outputFlags(
			&cli.StringFlag{Name: "name", Usage: "its new `NAME`"},
			&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
			propertyFlag(),
			&cli.BoolFlag{Name: "no-property", Usage: "remove all properties first"},
			&cli.StringFlag{Name: "pre-snapshot", Usage: "shell `COMMAND` that runs before a snapshot of the volume in use; empty: none"},
			&cli.StringFlag{Name: "post-snapshot", Usage: "shell `COMMAND` that runs after it; empty: none"},
			&cli.DurationFlag{Name: "hook-timeout", Usage: "`TIME` that either may take, at most 10m", DefaultText: "30s"}),
		(*call).volumeSet)
	command.Description = "Hooks are run by the daemon, with its rights, by /bin/sh. They see VARVE_HOOK (pre-snapshot or post-snapshot), VARVE_VOLUME, VARVE_VOLUME_ID, " +
		"VARVE_SNAPSHOT, VARVE_SNAPSHOT_ID and VARVE_STATE; the one after the snapshot also VARVE_OUTCOME (made or failed). " +
		"If the one before fails, or takes too long, no snapshot is made; the one after runs all the same."
	return command
}

func (c *call) volumeSet() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	change := api.VolumeChange{NoMetadata: c.Bool("no-property")}
	for name, to := range map[string]**string{
		"name": &change.Name, "description": &change.Description, "pre-snapshot": &change.PreSnapshot, "post-snapshot": &change.PostSnapshot,
	} {
		if c.IsSet(name) {
			value := c.String(name)
			*to = &value
		}
	}
	if c.IsSet("hook-timeout") {
		seconds := int64(c.Duration("hook-timeout") / time.Second)
		if seconds < 1 || seconds > 600 {
			return usagef("volume set: --hook-timeout is from 1s to 10m")
		}
		change.HookTimeout = &seconds
	}
	properties, err := parseProperties("volume set", c.StringSlice("property"))
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if len(properties) > 0 {
		change.Metadata, change.NoMetadata = properties, false
		if !c.Bool("no-property") {
			v, err := client.Volume(c.ctx, c.args[0])
			if err != nil {
				return err
			}
			change.Metadata = maps.Clone(v.Metadata)
			maps.Copy(change.Metadata, properties)
		}
	}
	v, err := client.ChangeVolume(c.ctx, c.args[0], change)
	if err != nil {
		return err
	}
	return out.show(c.stdout, volumeFields(v))
}

// parseProperties reads KEY=VALUE words.
func parseProperties(command string, words []string) (map[string]string, error) {
	properties := map[string]string{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, usagef("%s: property %q is not KEY=VALUE", command, word)
		}
		properties[key] = value
	}
	return properties, nil
}
