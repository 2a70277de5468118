package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) statusCommand() *cli.Command {
	return p.verb("status", "", "the daemon at a glance", outputFlags(), (*call).status)
}

func (c *call) status() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	st, err := client.Status(c.ctx)
	if err != nil {
		return err
	}
	return out.show(c.stdout, statusFields(st))
}

func statusFields(st api.Status) []field {
	targets, running, mounts := []string{}, []string{}, []string{}
	for _, t := range st.Targets {
		says := fmt.Sprintf("%d backups", t.Backups)
		if t.Error != nil {
			says = "does not answer: " + *t.Error
		}
		targets = append(targets, fmt.Sprintf("%s (%s): %s", t.Name, t.URL, says))
	}
	for _, o := range st.Running {
		running = append(running, fmt.Sprintf("%s %s (%v)", o.Kind, o.ID, cellText(share(o.DoneBytes, o.TotalBytes))))
	}
	for _, m := range st.Mounts {
		mounts = append(mounts, m.Path)
	}
	return []field{
		{"backups", int64(st.Backups)},
		{"capacity", byteCount(st.CapacityBytes)},
		{"free", byteCount(st.FreeBytes)},
		{"mounts", mounts},
		{"operations", running},
		{"pid", int64(st.PID)},
		{"snapshots", int64(st.Snapshots)},
		{"started_at", formatTime(st.StartedAt.Time)},
		{"state", st.State},
		{"targets", targets},
		{"version", st.Version},
		{"volumes", int64(st.Volumes)},
		{"volumes_in_use", int64(st.InUse)},
		{"warnings", st.Warnings},
	}
}
