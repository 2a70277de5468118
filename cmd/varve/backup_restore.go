package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) backupRestoreVerb() *cli.Command {
	command := p.verb("restore", "BACKUP [TO]", "restore into a new volume, over the volume TO, or, with --target URL, into the image TO",
		outputFlags(moveFlags(imageOutFlags(
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the new volume; the source's if left out"},
			&cli.BoolFlag{Name: "adopt", Usage: "back up the volume from this host from now on, going on from BACKUP; it keeps its id"},
			&cli.BoolFlag{Name: "allow-damaged", Usage: "restore what is left of a damaged backup, with zeros in the place of what is lost, and list that"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite TO"})...)...),
		(*call).backupRestore)
	command.Description = "A new volume is called restore_backup_ID while the restore runs. Everything that is read is checked; where it is damaged the restore " +
		"stops and names that; with --allow-damaged it goes on, lists the ranges of the volume that are lost, and ends with exit code 8. With --target URL no daemon is needed: TO is a raw or qcow2 file, - for raw on stdout, or the URI of an NBD export; " +
		"a file appears under its name only when it is whole."
	return command
}

func (c *call) backupRestore() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	to := ""
	if len(c.args) == 2 {
		to = c.args[1]
	}
	if c.directURL() != "" {
		switch {
		case c.Bool("adopt"):
			return usagef("backup restore: --adopt is for volumes of a daemon, and --target URL works without one")
		case to == "":
			return usagef("backup restore: with --target URL a FILE is needed: varve --target URL backup restore BACKUP FILE")
		case c.String("name") != "":
			return usagef("backup restore: --name is for a new volume of the daemon, and --target URL restores into an image: leave one of them out")
		}
		return c.directRestore(c.args[0], to)
	}
	if to != "" && c.String("name") != "" {
		return usagef("backup restore: --name is for a new volume, and %s keeps its name", to)
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	ref, err := c.chosen(client, c.args[0])
	if err != nil {
		return err
	}
	if isImageOut(to) || c.String("format") != "" {
		return c.notAnImage(client, ref, to)
	}
	r, o, err := client.RestoreBackup(c.ctx, ref, api.NewRestore{
		VolumeID: ptr(to), Name: ptr(c.String("name")), Force: c.Bool("force"), Adopt: c.Bool("adopt"), AllowDamaged: c.Bool("allow-damaged"),
	})
	if err != nil {
		return err
	}
	err = out.show(c.stdout, []field{{"backup_id", r.BackupID}, {"volume_id", r.VolumeID}, {"volume_name", r.VolumeName}})
	if err != nil {
		return err
	}
	err = c.followFindings(client, o, c.tellLost)
	if c.Bool("no-wait") && !c.Bool("wait") || err != nil && exitCode(err) != exitCorrupt {
		return err
	}
	return errors.Join(err, c.tellRestored(client, r.VolumeID))
}

// tellLost prints a line for each range of a volume that a restore past damage
// could not restore.
func (c *call) tellLost(found []api.Finding) error {
	for _, f := range found {
		for _, b := range f.Backups {
			for _, r := range b.Ranges {
				tellRange(c.stderr, r.Offset, r.Length)
			}
		}
	}
	return nil
}

func tellRange(w io.Writer, off, n int64) {
	fmt.Fprintf(w, "backup restore: lost: %d-%d (%d bytes)\n", off, off+n-1, n)
}

// notAnImage says how to get a backup into an image, which the daemon does not
// write: it may run as another user, in another folder.
func (c *call) notAnImage(client *api.Client, ref, to string) error {
	b, err := client.Backup(c.ctx, ref)
	if err != nil {
		return err
	}
	if to == "" {
		to = "FILE"
	}
	return usagef("backup restore: the daemon restores into volumes; into an image without it: varve --target '%s' backup restore %s %s", b.TargetURL, b.ID, to)
}

// tellRestored says what the volume is called in the end: the table above it
// has the name that it had while the restore ran.
func (c *call) tellRestored(client *api.Client, id string) error {
	v, err := client.Volume(c.ctx, id)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "backup restore: volume %s (%s) is %s\n", printable(v.Name), v.ID, v.Status)
	return nil
}
