package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/repo"
)

func (p *program) targetVerifyVerb() *cli.Command {
	command := p.verb("verify", "[TARGET]", "check everything that a target's backups need, each object once",
		outputFlags(moveFlags(
			&cli.StringFlag{Name: "mode", Usage: "`MODE`: presence, map, sample or deep", Value: "map"},
			&cli.IntFlag{Name: "samples", Usage: "read `N` frames with --mode sample", DefaultText: "3000"},
			&cli.StringFlag{Name: "max-rate", Usage: "read at most `SIZE` a second, such as 20MiB"},
			&cli.BoolFlag{Name: "repair", Usage: "write anew what is damaged, from what other backups and the volumes have"},
			&cli.StringFlag{Name: "older-than", Usage: "with --mode deep: leave out what was read whole within this `AGE`, such as 30d"})...),
		(*call).targetVerify)
	command.Description = "presence compares a listing with what the backups say of their objects; map also reads all maps; " +
		"sample also reads frames drawn at random; deep reads everything, first what was not read for longest, and goes on there when the daemon was stopped. " +
		"Each damaged place is listed with the ranges of volumes that it costs each backup. --repair finds what was there in other backups of the volume, in the volume itself " +
		"where it was not written since, and in its snapshots, and stores it again, so that all backups that need it are whole; nothing is replaced. " +
		"The exit code is 8 if something is damaged and left so. " +
		"With --target URL instead of TARGET no daemon is needed."
	return command
}

func (c *call) targetVerify() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	n := api.NewTargetVerify{Mode: c.String("mode"), Samples: c.Int("samples"), Repair: c.Bool("repair")}
	if n.Samples < 0 {
		return usagef("target verify: --samples cannot be negative")
	}
	if text := c.String("max-rate"); text != "" {
		if n.MaxRate, err = parseSize(text); err != nil {
			return err
		}
	}
	if text := c.String("older-than"); text != "" {
		age, err := parseAge(text)
		if err != nil {
			return err
		}
		n.OlderThan = int64(age / time.Second)
	}
	if _, err := repo.ParseLevel(n.Mode); err != nil {
		return usagef("target verify: --mode: %v", err)
	}
	switch direct := c.directURL(); {
	case direct != "" && len(c.args) > 0:
		return usagef("target verify: %s or --target %s: give one", c.args[0], direct)
	case direct != "":
		return c.directTargetVerify(out, n)
	case len(c.args) == 0:
		return usagef("target verify: a TARGET is missing, or --target URL")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	o, err := client.VerifyTarget(c.ctx, c.args[0], n)
	if err != nil {
		return err
	}
	return c.followFindings(client, o, func(found []api.Finding) error { return listDamage(out, c, found) })
}

// listDamage prints a row for each backup that each damaged place costs data,
// and one for a place that costs none.
func listDamage(out format, c *call, findings []api.Finding) error {
	var rows []row
	for _, f := range findings {
		if len(f.Backups) == 0 {
			rows = append(rows, row{f.File, f.Offset, f.Found, f.Repaired, nil, nil, nil, int64(0), nil})
		}
		for _, b := range f.Backups {
			rows = append(rows, row{f.File, f.Offset, f.Found, f.Repaired, b.BackupID, b.Name, b.VolumeName, b.Bytes, rangeTexts(b)})
		}
	}
	return out.list(c.stdout, []string{"Object", "Offset", "Found", "Repaired", "Backup", "Name", "Volume", "Bytes lost", "Ranges"}, rows)
}

// rangeTexts are ranges of a volume, first to last byte.
func rangeTexts(l api.Loss) []string {
	texts, told := []string{}, int64(0)
	for _, r := range l.Ranges {
		texts = append(texts, fmt.Sprintf("%d-%d", r.Offset, r.Offset+r.Length-1))
		told += r.Length
	}
	switch {
	case len(texts) == 0:
		return []string{"all: it cannot be opened"}
	case told < l.Bytes:
		return append(texts, "…")
	}
	return texts
}

// directTargetVerify verifies the target at the URL of --target. Nothing is
// remembered of it.
func (c *call) directTargetVerify(out format, n api.NewTargetVerify) error {
	if n.OlderThan > 0 {
		return usagef("target verify: --older-than: only the daemon remembers what was read")
	}
	level, err := repo.ParseLevel(n.Mode)
	if err != nil {
		return err
	}
	t, err := c.openDirect()
	if err != nil {
		return err
	}
	defer t.Close()
	bar := newProgress(c.stderr, "target verify", c.onTerminal())
	report, err := t.Audit(c.ctx, repo.AuditOptions{Level: level, Samples: n.Samples, Rate: n.MaxRate, Repair: n.Repair, Progress: bar.update})
	bar.finish()
	if err != nil && report.Count == 0 {
		return fmt.Errorf("target %s: %w", t.url, err)
	}
	if listed := listDamage(out, c, describeFindings(report)); listed != nil {
		return listed
	}
	fmt.Fprintf(c.stderr, "target verify: %s\n", agent.AuditNote(level, report, time.Time{}))
	if err != nil {
		return fmt.Errorf("target %s: %w", t.url, err)
	}
	return nil
}

// describeFindings are findings as the API would show them.
func describeFindings(report repo.AuditReport) []api.Finding {
	var out []api.Finding
	for _, f := range report.Findings {
		entry := api.Finding{File: f.Object, Offset: f.Offset, Found: agent.DamageText(f.Err), Repaired: f.Repaired}
		for _, b := range f.Backups {
			loss := api.Loss{BackupID: b.Backup.String(), Name: b.Name, VolumeName: b.VolumeName, Bytes: b.Bytes}
			for _, r := range b.Ranges {
				loss.Ranges = append(loss.Ranges, api.Range{Offset: r.Off, Length: r.Len})
			}
			entry.Backups = append(entry.Backups, loss)
		}
		out = append(out, entry)
	}
	return out
}

// parseAge reads a time span: Go's durations, and whole days and weeks.
func parseAge(s string) (time.Duration, error) {
	for unit, long := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if digits, is := strings.CutSuffix(s, unit); is {
			n, err := strconv.ParseUint(digits, 10, 12)
			if err != nil {
				return 0, usagef("%q is no age: give days such as 30d, or hours such as 36h", s)
			}
			return time.Duration(n) * long, nil
		}
	}
	age, err := time.ParseDuration(s)
	if err != nil || age < 0 {
		return 0, usagef("%q is no age: give days such as 30d, or hours such as 36h", s)
	}
	return age, nil
}
