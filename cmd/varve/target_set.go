package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

// targetFlags are the settings of a target, for add and set.
func targetFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "max-upload", Usage: "send at most `RATE` bytes a second, such as 10M or 500K; none: no limit"},
		&cli.StringFlag{Name: "max-download", Usage: "receive at most `RATE` bytes a second; none: no limit"},
		&cli.StringFlag{Name: "max-requests", Usage: "make at most `N` requests a second; none: no limit"},
		&cli.StringFlag{Name: "ca-file", Usage: "trust the certificate authorities in the PEM `FILE` and no others; empty: the system's"},
		&cli.StringFlag{Name: "verify-every", Usage: "read everything whole within this `AGE`, such as 90d; none: only when asked"},
		&cli.StringFlag{Name: "verify-rate", Usage: "read at most `RATE` bytes a second for that", DefaultText: "20M"},
		&cli.StringFlag{Name: "proxy", Usage: "reach it through the proxy at `URL`; none: directly; empty: as the daemon's environment says (HTTPS_PROXY, NO_PROXY)"})
}

func (p *program) targetSetVerb() *cli.Command {
	command := p.verb("set", "TARGET", "change how a target is used",
		outputFlags(targetFlags(
			&cli.BoolFlag{Name: "login", Usage: "log in from now on with the credentials of the environment, --credentials FILE or --cloud NAME"})...),
		(*call).targetSet)
	command.Description = "Rates hold at once, for what is under way too. New credentials, another proxy and another CA file are tried before " +
		"they are kept. Where a rate is not enough for all, mounts and lists go before backups and restores, and those before verifying."
	return command
}

func (c *call) targetSet() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	change, err := c.targetChange()
	if err != nil {
		return err
	}
	login := c.Bool("login") || c.IsSet("credentials") || c.IsSet("cloud")
	if !login && !slices.ContainsFunc(targetFlags(), func(f cli.Flag) bool { return c.IsSet(f.Names()[0]) }) {
		return usagef("target set: nothing to set: name a setting, such as --max-upload 10M, or --login; \"target show\" tells what is set")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if login {
		t, err := client.Target(c.ctx, c.args[0])
		if err != nil {
			return err
		}
		if change.Credentials, err = c.credentials(t.URL); err != nil {
			return err
		}
		if len(change.Credentials) == 0 {
			return usagef("target set: there are no credentials for %s in the environment, and no --credentials FILE or --cloud NAME", t.URL)
		}
	}
	t, err := client.ChangeTarget(c.ctx, c.args[0], change)
	if err != nil {
		return err
	}
	return out.show(c.stdout, targetFields(t))
}

// targetChange is what the flags of targetFlags say.
func (c *call) targetChange() (api.TargetChange, error) {
	var change api.TargetChange
	for name, to := range map[string]**int64{
		"max-upload": &change.MaxUpload, "verify-rate": &change.VerifyRate, "max-download": &change.MaxDownload, "max-requests": &change.MaxRequests,
	} {
		if !c.IsSet(name) {
			continue
		}
		parse := parseRate
		if name == "max-requests" {
			parse = parseFrequency
		}
		n, err := parse(c.String(name))
		if err != nil {
			return change, fmt.Errorf("--%s: %w", name, err)
		}
		*to = &n
	}
	if c.IsSet("verify-every") {
		seconds := int64(0)
		if text := c.String("verify-every"); text != "none" && text != "0" {
			age, err := parseAge(text)
			if err != nil {
				return change, fmt.Errorf("--verify-every: %w", err)
			}
			seconds = int64(age / time.Second)
		}
		change.VerifyEvery = &seconds
	}
	if c.IsSet("proxy") {
		proxy := c.String("proxy")
		change.Proxy = &proxy
	}
	if c.IsSet("ca-file") {
		file := c.String("ca-file")
		if file != "" {
			var err error
			if file, err = filepath.Abs(file); err != nil {
				return change, fmt.Errorf("--ca-file %s: %w", file, err)
			}
		}
		change.CAFile = &file
	}
	return change, nil
}

// parseRate reads a number of bytes a second: a size as parseSize reads it, with
// or without /s behind it, or none.
func parseRate(s string) (int64, error) {
	if s == "none" || s == "0" {
		return 0, nil
	}
	return parseSize(strings.TrimSuffix(s, "/s"))
}

// parseFrequency reads a number of times a second: a whole number, with or
// without /s behind it, or none.
func parseFrequency(s string) (int64, error) {
	if s == "none" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(s, "/s"), 10, 64)
	if err != nil || n < 0 {
		return 0, usagef("%q is not a number of requests a second, such as 20/s, nor none", s)
	}
	return n, nil
}

// limit is n, or nil (None) if that is no limit.
func limit[N int64 | byteRate](n N) any {
	if n == 0 {
		return nil
	}
	return n
}
