package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
	"varve/layers"
)

func (p *program) backupListVerb() *cli.Command {
	return p.verb("list", "", "list backups, newest first", outputFlags(append(pageFlags("backup"),
		&cli.BoolFlag{Name: "long", Usage: "also volume, container, whether incremental, whether protected, and the time of the data"},
		&cli.StringFlag{Name: "volume", Usage: "only those of this `VOLUME`, by its name or id, also if it is gone"},
		&cli.StringFlag{Name: "snapshot", Usage: "only those of this `SNAPSHOT`; one that is gone by its id"})...), (*call).backupList)
}

// pageFlags are those of lists, in OpenStack's words. There are no projects, so
// all of them are always listed.
func pageFlags(kind string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "only what has exactly this `NAME`"},
		&cli.StringFlag{Name: "status", Usage: "only what is in this `STATUS`, such as available or error"},
		&cli.StringFlag{Name: "marker", Usage: "what comes after this `" + kind + "`, by its name or id: the last one of the page before"},
		&cli.IntFlag{Name: "limit", Usage: "at most `N` of them"},
		&cli.BoolFlag{Name: "all-projects", Usage: "taken for OpenStack's sake: all are listed anyway", Hidden: true},
	}
}

// page is what the flags of pageFlags say.
func (c *call) page() (api.Page, error) {
	p := api.Page{Name: c.String("name"), Status: c.String("status"), Marker: c.String("marker"), Limit: c.Int("limit")}
	if c.IsSet("limit") && p.Limit < 1 {
		return p, usagef("%s: --limit %d: it is 1 or more", commandName(c.Context), p.Limit)
	}
	return p, nil
}

func (c *call) backupList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	page, err := c.page()
	if err != nil {
		return err
	}
	shown, err := c.backups(api.Filter{Page: page, Volume: c.String("volume"), Snapshot: c.String("snapshot")})
	if err != nil {
		return err
	}
	columns := []string{"ID", "Name", "Description", "Status", "Size"}
	if c.Bool("long") {
		columns = append(columns, "Volume", "Container", "Incremental", "Protected", "Data Timestamp")
	}
	var rows []row
	for _, b := range shown {
		cells := row{b.ID, b.Name, orNone(b.Description), b.Status, b.Size}
		if c.Bool("long") {
			cells = append(cells, b.VolumeName, b.Container, b.IsIncremental, b.Protected, formatTime(b.DataTimestamp.Time))
		}
		rows = append(rows, cells)
		if b.Damage != nil {
			fmt.Fprintf(c.stderr, "backup %s (%s) is damaged: %s\n", printable(b.Name), b.ID, printable(*b.Damage))
		}
	}
	for _, text := range forkTexts(shown) {
		fmt.Fprintln(c.stderr, printable(text))
	}
	return out.list(c.stdout, columns, rows)
}

// backups are those that are wanted of what the daemon knows, or of one of its
// targets, or of what the target at a URL holds.
func (c *call) backups(f api.Filter) ([]api.Backup, error) {
	_, notID := layers.ParseID(f.Snapshot)
	if c.directURL() != "" {
		if f.Snapshot != "" && notID != nil {
			return nil, usagef("backup list: --snapshot %s: a target knows no names of snapshots, they go by their ids there", f.Snapshot)
		}
		all, err := c.directBackups()
		if err != nil {
			return nil, err
		}
		return api.FilterBackups(all, f)
	}
	client, err := c.backupClient()
	if err != nil {
		return nil, err
	}
	if name := c.global("target"); name != "" {
		t, err := client.Target(c.ctx, name)
		if err != nil {
			return nil, err
		}
		f.Target = t.ID
	}
	if f.Snapshot != "" {
		s, err := client.Snapshot(c.ctx, f.Snapshot)
		switch {
		case err == nil:
			f.Snapshot = s.ID
		case exitCode(err) != exitNotFound || notID != nil: // one that is gone goes by its id
			return nil, err
		}
	}
	return client.Backups(c.ctx, f)
}
