package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) adoptVerb() *cli.Command {
	command := p.verb("adopt", "VOLUME", "make this host the one that backs up a volume, where another one did",
		outputFlags(&cli.StringFlag{Name: "container", Aliases: []string{"target"}, Usage: "`NAME` of the target; may be left out if there is one only"}),
		(*call).volumeAdopt)
	command.Description = "For a volume that is here, and whose backups another host has taken over. Nothing is copied, and nothing is taken from the other host: " +
		"it is told, and what it still backs up is whole too, but beside the volume's backups. A volume that is not here is adopted with: varve backup restore BACKUP --adopt"
	return command
}

func (c *call) volumeAdopt() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	claim, err := client.AdoptVolume(c.ctx, c.args[0], api.NewClaim{Container: ptr(c.String("container"))})
	if err != nil {
		return err
	}
	return out.show(c.stdout, []field{
		{"after_backup_id", claim.AfterID},
		{"created_at", formatTime(claim.CreatedAt.Time)},
		{"epoch", claim.Epoch},
		{"host", claim.Host},
		{"volume_id", claim.VolumeID},
	})
}

// warnTakeovers tells of a volume whose backups other hosts took over.
func (c *call) warnTakeovers(v api.Volume) {
	for _, over := range v.TakenOver {
		fmt.Fprintf(c.stderr, "varve: volume %s: %s. Delete it here if it lives there now; if it lives here, say so with: varve volume adopt %s\n",
			printable(v.Name), printable(over.Text), printable(v.Name))
	}
}

// forkTexts says where the backups of volumes fork, each once.
func forkTexts(all []api.Backup) []string {
	texts := []string{}
	for _, b := range all {
		for _, f := range b.Forks {
			if text := fmt.Sprintf("volume %s (%s) %s", b.VolumeName, b.VolumeID, f.Text); !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
	}
	return texts
}

// forksOf says where the forks are that a backup is on a side of.
func forksOf(b api.Backup) []string {
	texts := []string{}
	for _, f := range b.Forks {
		texts = append(texts, f.Text)
	}
	return texts
}
