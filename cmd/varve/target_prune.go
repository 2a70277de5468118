package main

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/repo"
)

func (p *program) pruneVerb() *cli.Command {
	command := p.verb("prune", "[TARGET]", "free the space of deleted backups, and of what crashed ones left",
		outputFlags(moveFlags(
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would go"},
			&cli.DurationFlag{Name: "grace", DefaultText: "24h", Usage: "`TIME` that what is condemned stays; with less than 24h no backup may run into the target, on any host"},
			&cli.IntFlag{Name: "repack-below", Value: repo.RepackBelow, Usage: "copy what is needed of packs of which less than `PERCENT` is, and small packs together; 0: copy nothing"})...),
		(*call).targetPrune)
	command.Description = "What no backup needs is condemned first. A run that is a grace or more later removes it. " +
		"Of packs that hold little of use that is copied into new ones, and the old ones go the same way. " +
		"Backups, restores and other runs, on this and on other hosts, may go on meanwhile. With --target URL no daemon is needed."
	return command
}

func (c *call) targetPrune() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	grace, below := c.Duration("grace"), c.Int("repack-below")
	switch {
	case below < 0 || below > 100:
		return usagef("target prune: --repack-below %d: a percentage, 0 to 100", below)
	case grace < 0 || c.IsSet("grace") && grace == 0:
		return usagef("target prune: --grace %v: it must be longer than nothing; 24h is the default", grace)
	case grace > 0 && grace < repo.PruneGrace:
		fmt.Fprintf(c.stderr, "varve: warning: with a grace of %v a backup that is being made into this target, on any host, may lose data that it needs. "+
			"Make sure that none runs.\n", grace)
	}
	if c.directURL() != "" {
		if len(c.args) > 0 {
			return usagef("target prune: %s or --target URL, not both", c.args[0])
		}
		return c.directPrune(out, grace, below)
	}
	if len(c.args) == 0 {
		return usagef("target prune: which TARGET? A name, or --target URL before it to do without the daemon")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	o, err := client.PruneTarget(c.ctx, c.args[0], api.NewPrune{DryRun: c.Bool("dry-run"), GraceSeconds: grace.Seconds(), RepackBelow: &below})
	if err != nil {
		return err
	}
	if err := c.follow(client, o); err != nil || c.Bool("no-wait") && !c.Bool("wait") {
		return err
	}
	if o, err = client.Operation(c.ctx, o.ID, 0); err != nil {
		return err
	}
	if o.Pruned == nil {
		return errors.New("target prune: the daemon does not say what it did")
	}
	return c.showPruned(out, *o.Pruned, grace)
}

// directPrune prunes the target at the URL.
func (c *call) directPrune(out format, grace time.Duration, below int) error {
	t, err := c.openDirect()
	if err != nil {
		return err
	}
	defer t.Close()
	bar := newProgress(c.stderr, "target prune", c.onTerminal())
	dry := c.Bool("dry-run")
	report, err := t.Prune(c.ctx, repo.PruneOptions{DryRun: dry, Grace: grace, RepackBelow: below, Progress: bar.update})
	bar.finish()
	if err != nil {
		return fmt.Errorf("prune target %s: %w", t.url, err)
	}
	return c.showPruned(out, api.PrunedBy(agent.Pruned(report, dry)), grace)
}

// showPruned prints what was done, and tells in a sentence what will follow.
func (c *call) showPruned(out format, p api.Pruned, grace time.Duration) error {
	if err := out.show(c.stdout, prunedFields(p)); err != nil {
		return err
	}
	gone, went := "gone", "go"
	if p.DryRun {
		gone, went = "what would go", "would go"
	}
	told := fmt.Sprintf("target prune: %s in %d objects: %s", formatBytes(p.FreedBytes), p.FreedObjects, gone)
	if later := p.CondemnedObjects + p.YoungObjects; later > 0 {
		told += fmt.Sprintf("; %s in %d objects that no backup needs %s with later runs: prune again in %v",
			formatBytes(p.CondemnedBytes+p.YoungBytes), later, went, cmp.Or(grace, repo.PruneGrace))
	}
	fmt.Fprintln(c.stderr, told)
	return nil
}

// prunedFields tell what went, and what will go.
func prunedFields(p api.Pruned) []field {
	return []field{
		{"dry_run", p.DryRun},
		{"backups", p.Backups},
		{"freed_objects", p.FreedObjects},
		{"freed_bytes", byteCount(p.FreedBytes)},
		{"condemned_objects", p.CondemnedObjects},
		{"condemned_bytes", byteCount(p.CondemnedBytes)},
		{"young_objects", p.YoungObjects},
		{"young_bytes", byteCount(p.YoungBytes)},
		{"repacked_objects", p.RepackedObjects},
		{"repacked_bytes", byteCount(p.RepackedBytes)},
		{"rewritten_objects", p.RewrittenObjects},
		{"rewritten_bytes", byteCount(p.RewrittenBytes)},
		{"waiting_backups", p.WaitingBackups},
		{"pack_objects", p.PackObjects},
		{"pack_bytes", byteCount(p.PackBytes)},
		{"retained_objects", p.Retained},
		{"kept", p.Kept},
	}
}
