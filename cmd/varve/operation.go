package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
)

func (p *program) operationCommand() *cli.Command {
	return noun("operation", "work that runs in the daemon",
		p.verb("list", "", "list operations, newest first", outputFlags(), (*call).operationList),
		p.verb("show", "OPERATION", "show one operation, and follow it to its end with --wait",
			outputFlags(&cli.BoolFlag{Name: "wait", Usage: "follow it to its end"}), (*call).operationShow),
		p.verb("set", "OPERATION...", "change running operations", []cli.Flag{
			fullSpeedFlag(),
			&cli.BoolFlag{Name: "make-way", Usage: "rest where it would slow down those who use volumes (the default)"},
		}, (*call).operationSet),
		p.verb("cancel", "OPERATION...", "stop running operations", nil, (*call).operationCancel))
}

func (c *call) operationList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Operations(c.ctx)
	if err != nil {
		return err
	}
	var rows []row
	for _, o := range all {
		rows = append(rows, row{o.ID, o.Kind, o.SubjectID, o.State, operationShare(o), formatTime(o.StartedAt.Time)})
	}
	return out.list(c.stdout, []string{"ID", "Kind", "Subject", "State", "Progress", "Started at"}, rows)
}

func (c *call) operationShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	o, err := client.Operation(c.ctx, c.args[0], 0)
	if err != nil {
		return err
	}
	var failed error
	switch {
	case !c.Bool("wait"):
	case o.Ended():
		failed = outcome(o) // a script asks the same whether it came in time or not
	default:
		failed = c.watch(client, o)
		if o, err = client.Operation(c.ctx, o.ID, 0); err != nil {
			return errors.Join(failed, err)
		}
	}
	return errors.Join(failed, out.show(c.stdout, []field{
		{"id", o.ID},
		{"kind", o.Kind},
		{"subject_id", o.SubjectID},
		{"state", o.State},
		{"error", orNone(o.Error)},
		{"findings", findingTexts(o)},
		{"note", orNone(o.Note)},
		{"waits_for", orNone(o.WaitsFor)},
		{"full_speed", o.FullSpeed},
		{"progress", operationShare(o)},
		{"reason", orNone(o.Reason)},
		{"done_bytes", byteCount(o.DoneBytes)},
		{"total_bytes", byteCount(o.TotalBytes)},
		{"started_at", formatTime(o.StartedAt.Time)},
		{"ended_at", formatTime(o.EndedAt.Time)},
	}))
}

func (c *call) operationSet() error {
	full := c.Bool("full-speed")
	if full == c.Bool("make-way") {
		return usagef("operation set: give --full-speed or --make-way")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("operation", "set", func(id string) error {
		_, err := client.SetFullSpeed(c.ctx, id, full)
		return err
	})
}

func (c *call) operationCancel() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("operation", "cancel", func(id string) error {
		_, err := client.CancelOperation(c.ctx, id)
		return err
	})
}

// waitFlags are those of commands that begin an operation.
func waitFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.BoolFlag{Name: "wait", Usage: "follow the operation to its end (the default)"},
		&cli.BoolFlag{Name: "no-wait", Usage: "return once the operation has begun"})
}

// moveFlags are waitFlags of commands whose operation moves data.
func moveFlags(more ...cli.Flag) []cli.Flag { return waitFlags(append(more, fullSpeedFlag())...) }

func fullSpeedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "full-speed", Usage: "as fast as possible: do not make way for those who use volumes"}
}

// follow shows an operation's progress until its end, and returns why it
// failed. With --no-wait it only says how to follow it.
func (c *call) follow(client *api.Client, o api.Operation) error {
	if c.Bool("full-speed") {
		_, err := client.SetFullSpeed(c.ctx, o.ID, true)
		if err != nil && exitCode(err) != exitRefused { // It may have ended already.
			return err
		}
	}
	if c.Bool("no-wait") && !c.Bool("wait") {
		fmt.Fprintf(c.stderr, "%s goes on as operation %s; follow it with: varve operation show %s --wait\n", o.Kind, o.ID, o.ID)
		return nil
	}
	return c.watch(client, o)
}

// followFindings is follow, and then lists what the operation found.
func (c *call) followFindings(client *api.Client, o api.Operation, list func([]api.Finding) error) error {
	failed := c.follow(client, o)
	var quiet quietError
	if c.Bool("no-wait") && !c.Bool("wait") || errors.As(failed, &quiet) {
		return failed
	}
	o, err := client.Operation(c.ctx, o.ID, 0)
	if err != nil {
		return errors.Join(failed, err)
	}
	if err := list(o.Findings); err != nil {
		return err
	}
	return failed
}

// watch is follow whatever the flags say. Ctrl-C leaves the operation running.
func (c *call) watch(client *api.Client, o api.Operation) error {
	bar := newProgress(c.stderr, o.Kind, c.onTerminal())
	id, kind := o.ID, o.Kind
	var err error
	waits := ""
	for next, e := range client.WatchOperation(c.ctx, id) {
		if e != nil {
			err = e
			break
		}
		o = next
		if now := text(o.WaitsFor, ""); now != waits && now != "" {
			bar.finish()
			fmt.Fprintf(c.stderr, "%s waits: %s\n", kind, printable(now))
			waits = now
		}
		bar.update(o.DoneBytes, o.TotalBytes)
	}
	bar.finish()
	switch {
	case err != nil && errors.Is(c.ctx.Err(), context.Canceled):
		fmt.Fprintf(c.stderr, "varve: no longer watching; %s goes on in the daemon as operation %s\n"+
			"  follow it: varve operation show %s --wait\n  cancel it: varve operation cancel %s\n", kind, id, id, id)
		return quietError{exitDetached}
	case err != nil:
		return err
	}
	err = outcome(o)
	if err == nil && o.Note != nil {
		fmt.Fprintf(c.stderr, "%s: %s\n", kind, printable(*o.Note))
	}
	return err
}

// outcome is why an operation that has ended did not succeed, or what it had to
// leave out, or nil.
func outcome(o api.Operation) error {
	switch o.State {
	case "succeeded":
		if o.Damage > 0 { // a restore past damage
			return &agent.Error{Reason: agent.Corrupt, Message: o.Kind + ": " + text(o.Note, "it was damaged")}
		}
		return nil
	case "canceled":
		return fmt.Errorf("%s: canceled", o.Kind)
	}
	err := fmt.Errorf("%s: %s", o.Kind, text(o.Error, "it ended as "+o.State))
	reason := agent.Reason(text(o.Reason, string(agent.Internal)))
	if o.Damage > 0 {
		reason = agent.Corrupt
	}
	return &agent.Error{Reason: reason, Message: err.Error()}
}

// each tries an act on every argument, tells what failed, and ends with how
// many did, as OpenStack's client does.
func (c *call) each(kind, act string, try func(name string) error) error {
	failed, code := 0, exitOK
	for _, name := range c.args {
		err := try(name)
		if err == nil {
			continue
		}
		var quiet quietError
		if code := exitCode(err); errors.As(err, &quiet) || code == exitAway || code == exitDetached {
			return err // there is no point in trying the others
		}
		failed++
		if this := exitCode(err); code == exitOK || code == this {
			code = this
		} else {
			code = exitFailed
		}
		c.complain(fmt.Sprintf("Failed to %s %s with name or ID '%s': ", act, kind, printable(name)), err)
	}
	if failed == 0 {
		return nil
	}
	fmt.Fprintf(c.stderr, "%d of %d %ss failed to %s.\n", failed, len(c.args), kind, act)
	return quietError{code}
}

// orNone is *s, or nil (None) for null.
func orNone(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

// text is *s, or other for null.
func text(s *string, other string) string {
	if s == nil {
		return other
	}
	return *s
}

// operationShare is how much of an operation is done, in percent: all of one
// that has succeeded, also where there were no bytes to count.
func operationShare(o api.Operation) any {
	if o.State == "succeeded" {
		return share(1, 1)
	}
	return share(o.DoneBytes, o.TotalBytes)
}

// share is done of total in percent, or nil (None) while total is not known.
func share(done, total int64) any {
	if total <= 0 {
		return nil
	}
	return fmt.Sprintf("%d%%", int(100*float64(min(max(done, 0), total))/float64(total)))
}
