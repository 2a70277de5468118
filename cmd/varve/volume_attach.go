package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) attachVerb() *cli.Command {
	return p.verb("attach", "VOLUME", "keep a volume from its clients, for maintenance",
		outputFlags(&cli.BoolFlag{Name: "maintenance", Usage: "NBD clients are refused; snapshot, revert, check and backup work"}),
		(*call).volumeAttach)
}

func (p *program) detachVerb() *cli.Command {
	return p.verb("detach", "VOLUME", "end a volume's maintenance", outputFlags(), (*call).volumeDetach)
}

func (c *call) volumeAttach() error {
	if !c.Bool("maintenance") {
		return usagef("volume attach: only --maintenance is known here; clients attach a volume by its address, "+
			"which %q prints", "varve volume show "+c.args[0]+" --long -c uri")
	}
	return c.changeVolume((*api.Client).BeginMaintenance)
}

func (c *call) volumeDetach() error { return c.changeVolume((*api.Client).EndMaintenance) }

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
