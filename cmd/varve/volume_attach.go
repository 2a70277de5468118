package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) attachVerb() *cli.Command {
	return p.verb("attach", "VOLUME", "show a volume as a block device of this machine, or keep it from its clients for maintenance",
		outputFlags(
			&cli.BoolFlag{Name: "read-only", Usage: "the device cannot be written; a snapshot's never can"},
			&cli.BoolFlag{Name: "persist", Usage: "attach it again when the machine was started again"},
			&cli.StringFlag{Name: "device", Usage: "a certain `DEVICE`, such as /dev/nbd3; any that is free if left out"},
			&cli.IntFlag{Name: "connections", Value: 1, Usage: "`NUMBER` of sockets between the kernel and the daemon, up to 16"},
			&cli.IntFlag{Name: "block-size", Value: 512, Usage: "`BYTES` of the device's blocks, 512 to 4096"},
			&cli.BoolFlag{Name: "maintenance", Usage: "no device: NBD clients are refused; snapshot, revert, check and backup work"}),
		(*call).volumeAttach)
}

func (p *program) detachVerb() *cli.Command {
	return p.verb("detach", "VOLUME", "take away a volume's block device, or end its maintenance",
		outputFlags(&cli.BoolFlag{Name: "force", Usage: "also while it is mounted or open: whoever uses it gets I/O errors"}),
		(*call).volumeDetach)
}

func (c *call) volumeAttach() error {
	if c.Bool("maintenance") {
		return c.changeVolume((*api.Client).BeginMaintenance)
	}
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	n := api.NewAttachment{
		Export: c.args[0], ReadOnly: c.Bool("read-only"), Persist: c.Bool("persist"),
		Connections: c.Int("connections"), BlockSize: int64(c.Int("block-size")),
	}
	if device := c.String("device"); device != "" {
		device = filepath.Clean(device)
		n.Device = &device
	}
	a, err := client.Attach(c.ctx, n)
	if err != nil {
		return err
	}
	return out.show(c.stdout, attachmentFields(a))
}

// attachmentFields are the rows of OpenStack's volume attachment, as far as
// there is something to say.
func attachmentFields(a api.Attachment) []field {
	mode := "rw"
	if a.ReadOnly {
		mode = "ro"
	}
	return []field{
		{"attach_mode", mode},
		{"attached_at", formatTime(a.AttachedAt.Time)},
		{"device", orNone(a.Device)},
		{"id", a.ID},
		{"name", a.Export},
		{"persist", a.Persist},
		{"volume_id", a.VolumeID},
	}
}

// volumeDetach ends a device, or where there is none, a maintenance.
func (c *call) volumeDetach() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := client.Volume(c.ctx, c.args[0])
	if err == nil && v.Maintenance {
		return c.changeVolume((*api.Client).EndMaintenance)
	}
	if err != nil && exitCode(err) != exitNotFound { // a device or a snapshot is no volume
		return err
	}
	if err := client.Detach(c.ctx, c.args[0], c.Bool("force")); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s is detached\n", c.args[0])
	return err
}

// changeVolume carries out a change of one volume and prints what it is then.
func (c *call) changeVolume(change func(*api.Client, context.Context, string) (api.Volume, error)) error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := change(client, c.ctx, c.args[0])
	if err != nil {
		return err
	}
	return out.show(c.stdout, volumeFields(v))
}

func (p *program) attachmentCommand() *cli.Command {
	return noun("attachment", "block devices of this machine that show volumes",
		p.verb("list", "", "list them, oldest first", outputFlags(), (*call).attachmentList))
}

func (c *call) attachmentList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Attachments(c.ctx)
	if err != nil {
		return err
	}
	var rows []row
	for _, a := range all {
		rows = append(rows, row{a.ID, a.Export, orNone(a.Device), a.ReadOnly, a.Persist})
	}
	return out.list(c.stdout, []string{"ID", "Name", "Device", "Read-only", "Persist"}, rows)
}
