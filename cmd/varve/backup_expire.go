package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) backupExpireVerb() *cli.Command {
	keep := func(name, what string) cli.Flag {
		return &cli.IntFlag{Name: "keep-" + name, Usage: "keep " + what, DefaultText: "0"}
	}
	return p.verb("expire", "[VOLUME]", "delete the backups of a volume that a retention rule does not keep; the others stay whole",
		outputFlags(waitFlags(
			&cli.BoolFlag{Name: "all", Usage: "every volume, each for itself"},
			&cli.StringFlag{Name: "container", Aliases: []string{"target"}, Usage: "`NAME` of the target; every target, each for itself, if left out"},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would stay and go, and delete nothing"},
			keep("last", "the `N` newest"),
			keep("hourly", "the newest of each of the last `N` hours that have one"),
			keep("daily", "the same of `N` days"),
			keep("weekly", "of `N` weeks"),
			keep("monthly", "of `N` months"),
			keep("yearly", "of `N` years"))...),
		(*call).backupExpire)
}

func (c *call) backupExpire() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.Bool("all") == (len(c.args) == 1) {
		return usagef("backup expire: name a volume, or say --all for every one")
	}
	n := api.NewExpiry{
		Container: c.container(), DryRun: c.Bool("dry-run"),
		KeepLast: c.Int("keep-last"), KeepHourly: c.Int("keep-hourly"), KeepDaily: c.Int("keep-daily"),
		KeepWeekly: c.Int("keep-weekly"), KeepMonthly: c.Int("keep-monthly"), KeepYearly: c.Int("keep-yearly"),
	}
	if len(c.args) == 1 {
		n.VolumeID = c.args[0]
	}
	if min(n.KeepLast, n.KeepHourly, n.KeepDaily, n.KeepWeekly, n.KeepMonthly, n.KeepYearly) < 0 {
		return usagef("backup expire: what to keep is 0 or more")
	}
	if n.KeepLast+n.KeepHourly+n.KeepDaily+n.KeepWeekly+n.KeepMonthly+n.KeepYearly == 0 {
		return usagef("backup expire: nothing would be kept: say what to keep, such as --keep-daily 7")
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	decisions, begun, err := client.ExpireBackups(c.ctx, n)
	if err != nil {
		return err
	}
	var rows []row
	for _, d := range decisions {
		action := "delete"
		if d.Keep {
			action = "keep"
		}
		rows = append(rows, row{d.Backup.ID, d.Backup.Name, d.Backup.VolumeName, formatTime(d.Backup.DataTimestamp.Time), action, strings.Join(d.Reasons, ", ")})
	}
	if err := out.list(c.stdout, []string{"ID", "Name", "Volume", "Data Timestamp", "Action", "Reason"}, rows); err != nil {
		return err
	}
	for _, o := range begun {
		if err := c.follow(client, o); err != nil {
			return err
		}
	}
	return nil
}
