package main

import (
	"strings"

	"varve/agent"
	"varve/agent/api"
)

func (c *call) targetShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.directURL() != "" {
		return c.directShow(out)
	}
	if len(c.args) == 0 {
		return usagef("target show: TARGET is missing")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	t, err := client.Target(c.ctx, c.args[0])
	if err != nil {
		return err
	}
	backups, err := client.Backups(c.ctx, api.Filter{Target: t.ID})
	if err != nil {
		return err
	}
	forks := forkTexts(backups)
	d, err := client.DescribeTarget(c.ctx, t.ID)
	if err != nil {
		c.complain("target show: what the target itself would say is left out: ", err)
		return out.show(c.stdout, append(targetFields(t), field{"forks", forks}))
	}
	return out.show(c.stdout, append(append(targetFields(t), descriptionFields(d)...), field{"forks", forks}))
}

// directShow shows the repository at the URL of --target.
func (c *call) directShow(out format) error {
	if len(c.args) > 0 {
		return usagef("target show: with --target URL no TARGET is named")
	}
	t, err := c.openDirect()
	if err != nil {
		return err
	}
	defer t.Close()
	d := agent.TargetDescription{Description: t.Describe()}
	if t.Encrypted() {
		if d.Keys, err = t.Slots(c.ctx); err != nil {
			return err
		}
	}
	backups, err := t.backups(c)
	if err != nil {
		return err
	}
	fields := []field{
		{"encrypted", t.Encrypted()},
		{"forks", forkTexts(backups)},
		{"kind", scheme(t.url)},
		{"repository_id", t.ID().String()},
		{"url", t.url},
	}
	return out.show(c.stdout, append(fields, descriptionFields(api.DescribeTarget(d))...))
}

// descriptionFields are what a target says about itself.
func descriptionFields(d api.TargetDescription) []field {
	keys := make([]string, len(d.Keys))
	for i, k := range d.Keys {
		keys[i] = k.Kind
		if k.Label != "" {
			keys[i] += " (" + k.Label + ")"
		}
		switch {
		case k.Problem != nil:
			keys[i] = "damaged"
		case k.ReplacedBy != nil:
			keys[i] += " (not removed: its rotation was cut off)"
		}
	}
	return []field{
		{"compression", d.Compression},
		{"credentials", d.Credentials},
		{"encryption", d.Encryption},
		{"format", int64(d.Format)},
		{"keys", keys},
		{"label", d.Label},
		{"repository_created_at", formatTime(d.CreatedAt.Time)},
	}
}

// scheme is the kind of object store at a URL.
func scheme(url string) string {
	kind, _, _ := strings.Cut(url, ":")
	return kind
}
