package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) exportVerb() *cli.Command {
	command := p.verb("export", "VOLUME[@SNAPSHOT] DESTINATION",
		"write a volume or snapshot to a raw or qcow2 file, to stdout as raw with -, or to an NBD URI",
		imageOutFlags(append(quiesceFlags(),
			&cli.BoolFlag{Name: "force", Usage: "overwrite the destination"})...),
		(*call).volumeExport)
	command.Description = "A volume may be in use: a temporary snapshot is exported, so that the image is of one instant, as after a power cut. " +
		"It is deleted at the end; if this program is killed, one whose name begins with " + exportSnapshot + " stays. " +
		"What a virtual machine keeps in memory and has not written is not in it, unless a hook sees to that. A file appears under its name only when it is whole."
	return command
}

// exportSnapshot is how the names of temporary snapshots begin.
const exportSnapshot = "export-"

func (c *call) volumeExport() error {
	ref, to := c.args[0], c.args[1]
	client, err := c.client()
	if err != nil {
		return err
	}
	out := &imageOut{call: c, act: "volume export", to: to}
	if err := out.check(); err != nil {
		return err
	}
	s, temporary, err := c.exported(client, ref)
	if err != nil {
		return err
	}
	err = c.exportTo(client, s, out)
	if temporary {
		drop := c.settle(func(ctx context.Context) error { return client.DeleteSnapshot(ctx, s.ID) })
		if drop != nil {
			err = errors.Join(err, fmt.Errorf("the temporary snapshot %s is left: %w; delete it with: varve snapshot delete %s", s.Name, drop, s.ID))
		}
	}
	if err != nil {
		return fmt.Errorf("export %s to %s: %w", ref, to, err)
	}
	fmt.Fprintf(out.said(), "exported %s to %s, %d bytes\n", ref, to, s.SizeBytes)
	return nil
}

// exported is the snapshot to export: the one named, or a new one.
func (c *call) exported(client *api.Client, ref string) (s api.Snapshot, temporary bool, err error) {
	if strings.Contains(ref, "@") {
		s, err = client.Snapshot(c.ctx, ref)
		return s, false, err
	}
	quiesce, err := c.quiesce()
	if err != nil {
		return s, false, err
	}
	s, err = client.CreateSnapshot(c.ctx, api.NewSnapshot{
		VolumeID: ref, Name: exportSnapshot + time.Now().UTC().Format("20060102T150405.000"),
		Description: "temporary, of varve volume export", Quiesce: quiesce,
	})
	if err == nil {
		c.tellNote(s)
	}
	return s, true, err
}

func (c *call) exportTo(client *api.Client, s api.Snapshot, out *imageOut) error {
	v, err := client.Volume(c.ctx, s.VolumeID)
	if err != nil {
		return err
	}
	from, err := c.dialExport(v, s.ID)
	if err != nil {
		return err
	}
	defer from.Close()
	return out.write(from)
}
