package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) snapshotCommand() *cli.Command {
	return noun("snapshot", "points in time of a volume",
		p.verb("create", "VOLUME", "keep the present state of a volume",
			outputFlags(append(quiesceFlags(),
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the snapshot; the time if left out"},
				&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"})...),
			(*call).snapshotCreate),
		p.verb("list", "[VOLUME]", "list snapshots, oldest first",
			outputFlags(append(pageFlags("snapshot"),
				&cli.StringFlag{Name: "volume", Usage: "only those of this `VOLUME`"},
				&cli.BoolFlag{Name: "tree", Usage: "as a tree: each below the snapshot that it was made after, with the volume where it is now"},
				&cli.BoolFlag{Name: "long", Usage: "also the volume, the time and what each alone holds on disk"},
				&cli.BoolFlag{Name: "all", Aliases: []string{"system"}, Usage: "also those that Varve made itself, for a backup"})...),
			(*call).snapshotList),
		p.verb("show", "SNAPSHOT", "show one snapshot; VOLUME@SNAPSHOT where the name alone is ambiguous",
			outputFlags(), (*call).snapshotShow),
		p.diffVerb(),
		p.resetVerb("snapshot", "SNAPSHOT..."),
		p.verb("delete", "SNAPSHOT...", "delete snapshots; all others read as before", nil, (*call).snapshotDelete))
}

func (c *call) snapshotCreate() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	quiesce, err := c.quiesce()
	if err != nil {
		return err
	}
	s, err := client.CreateSnapshot(c.ctx, api.NewSnapshot{
		VolumeID: c.args[0], Name: c.String("name"), Description: c.String("description"), Quiesce: quiesce,
	})
	if err != nil {
		return err
	}
	c.tellNote(s)
	return out.show(c.stdout, snapshotFields(s))
}

// tellNote prints what whoever made a snapshot should know.
func (c *call) tellNote(s api.Snapshot) {
	if s.Note != nil {
		fmt.Fprintf(c.stderr, "%s: %s\n", commandName(c.Context), printable(*s.Note))
	}
}

func (c *call) snapshotList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	page, err := c.page()
	if err != nil {
		return err
	}
	volume := c.String("volume")
	if len(c.args) > 0 && volume != "" {
		return usagef("snapshot list: %s or --volume, not both", c.args[0])
	}
	if len(c.args) > 0 {
		volume = c.args[0]
	}
	if c.Bool("tree") && page != (api.Page{}) {
		return usagef("snapshot list: --tree shows all of a volume: leave the other filters out")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Snapshots(c.ctx, volume, c.Bool("all"), page)
	if err != nil {
		return err
	}
	if c.Bool("tree") {
		return out.list(c.stdout, treeColumns, snapshotTree(all))
	}
	columns := []string{"ID", "Name", "Description", "Status", "Size"}
	if c.Bool("long") {
		columns = append(columns, "Volume", "Created At", "Actual Size", "Exclusive")
	}
	var rows []row
	for _, s := range all {
		r := row{s.ID, s.Name, orNone(s.Description), s.Status, s.Size}
		if c.Bool("long") {
			r = append(r, s.VolumeName, formatTime(s.CreatedAt.Time), byteCount(s.Bytes), exclusive(s))
		}
		rows = append(rows, r)
	}
	return out.list(c.stdout, columns, rows)
}

func (c *call) snapshotShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	s, err := client.Snapshot(c.ctx, c.args[0])
	if err != nil {
		return err
	}
	return out.show(c.stdout, snapshotFields(s))
}

func (c *call) snapshotDelete() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("snapshot", "delete", func(name string) error { return client.DeleteSnapshot(c.ctx, name) })
}

func snapshotFields(s api.Snapshot) []field {
	return []field{
		{"actual_size", byteCount(s.Bytes)},
		{"consistency", s.Consistency},
		{"exclusive_size", exclusive(s)},
		{"created_at", formatTime(s.CreatedAt.Time)},
		{"description", orNone(s.Description)},
		{"fail_reason", orNone(s.FailReason)},
		{"id", s.ID},
		{"name", s.Name},
		{"note", orNone(s.Note)},
		{"size", s.Size},
		{"status", s.Status},
		{"volume_id", s.VolumeID},
		{"volume_name", s.VolumeName},
	}
}

// exclusive is what would come back if the snapshot alone were deleted, or nil
// (None) while that is not known.
func exclusive(s api.Snapshot) any {
	if s.Exclusive == nil {
		return nil
	}
	return byteCount(*s.Exclusive)
}
