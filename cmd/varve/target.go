package main

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) targetCommand() *cli.Command {
	return noun("target", "places where backups go",
		p.verb("add", "NAME URL", "open the repository at a URL, or make one there, and remember it",
			outputFlags(targetFlags(
				compressionFlag("of a new repository, for backups that ask for none; fastest if left out; a repository that is there keeps its own"),
				&cli.BoolFlag{Name: "no-encryption", Usage: "store backups so that whoever reads the target can read them"},
				recoveryFileFlag())...),
			(*call).targetAdd),
		p.verb("list", "", "list targets, oldest first", outputFlags(), (*call).targetList),
		p.verb("show", "[TARGET]", "show one target, but no secrets; or what --target URL holds", outputFlags(), (*call).targetShow),
		p.targetSetVerb(),
		p.verb("remove", "TARGET...", "forget targets and their credentials; the backups stay in them", nil, (*call).targetRemove),
		p.verb("sync", "TARGET...", "read the targets' lists of backups now", nil, (*call).targetSync),
		p.targetVerifyVerb(),
		p.pruneVerb(),
		p.usageVerb(),
		p.targetKeyCommand())
}

func (c *call) targetAdd() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	at, err := absoluteURL(c.args[1])
	if err != nil {
		return err
	}
	env, err := c.credentials(at)
	if err != nil {
		return err
	}
	if err := c.checkCompression(); err != nil {
		return err
	}
	n := api.NewTarget{Name: c.args[0], URL: at, NoEncryption: c.Bool("no-encryption"), Compression: c.String("compression")}
	if n.TargetChange, err = c.targetChange(); err != nil {
		return err
	}
	n.Credentials = env
	if !n.NoEncryption {
		secret, err := c.secrets().read(n.Name, true)
		if err != nil {
			return err
		}
		n.Passphrase, n.KeyFile = secret.passphrase, secret.keyFile
	}
	paper, err := c.recoveryPaper(n.Name, at)
	if err != nil {
		return err
	}
	t, recovery, err := client.AddTarget(c.ctx, n)
	if err := paper.write(recovery); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	return out.show(c.stdout, targetFields(t))
}

// absoluteURL makes the directory of a file URL absolute by this process's
// working directory, which the daemon does not share. It refuses a URL that
// holds a password: it would be stored and shown.
func absoluteURL(raw string) (string, error) {
	if u, err := url.Parse(raw); err == nil && u.User != nil {
		return "", usagef("target URL: credentials do not belong into the URL: use the environment (OS_…, AWS_…) or --credentials FILE")
	}
	dir, isFile := strings.CutPrefix(raw, "file:")
	if !isFile || strings.HasPrefix(dir, "/") || dir == "" {
		return raw, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("target URL %s: %w", raw, err)
	}
	return "file://" + abs, nil
}

func (c *call) targetList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Targets(c.ctx)
	if err != nil {
		return err
	}
	var rows []row
	for _, t := range all {
		rows = append(rows, row{t.ID, t.Name, t.URL, t.Encrypted, formatTime(t.SyncedAt.Time)})
	}
	return out.list(c.stdout, []string{"ID", "Name", "URL", "Encrypted", "Synced at"}, rows)
}

func (c *call) targetRemove() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("target", "remove", func(name string) error { return client.RemoveTarget(c.ctx, name) })
}

func (c *call) targetSync() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("target", "sync", func(name string) error {
		_, err := client.SyncTarget(c.ctx, name)
		return err
	})
}

func targetFields(t api.Target) []field {
	return []field{
		{"ca_file", orNone(t.CAFile)},
		{"created_at", formatTime(t.CreatedAt.Time)},
		{"encrypted", t.Encrypted},
		{"id", t.ID},
		{"kind", scheme(t.URL)},
		{"max_download", limit(byteRate(t.MaxDownload))},
		{"max_requests", limit(t.MaxRequests)},
		{"max_upload", limit(byteRate(t.MaxUpload))},
		{"name", t.Name},
		{"proxy", orNone(t.Proxy)},
		{"repository_id", t.RepositoryID},
		{"synced_at", formatTime(t.SyncedAt.Time)},
		{"url", t.URL},
		{"verified", verifiedText(t.Verified)},
		{"verify_every", age(t.VerifyEvery)},
		{"verify_rate", limit(byteRate(t.VerifyRate))},
	}
}

// verifiedText is what the last verification of a target said, or nil (None).
func verifiedText(v *api.Verification) any {
	if v == nil {
		return nil
	}
	text := fmt.Sprintf("%s, %s, %d backups, ", formatTime(v.EndedAt.Time), v.Mode, v.Backups)
	if v.Damage > 0 {
		text += fmt.Sprintf("%d places damaged (varve operation show %s)", v.Damage, v.OperationID)
	} else {
		text += "nothing damaged"
	}
	if v.OldestAt.IsZero() {
		return text + fmt.Sprintf("; %d of %d packs were read whole", v.Read, v.Packs)
	}
	return text + fmt.Sprintf("; all was read since %s", formatTime(v.OldestAt.Time))
}

// age is a time span in seconds for people, or nil (None) for none.
func age(seconds int64) any {
	switch day := int64(24 * 60 * 60); {
	case seconds == 0:
		return nil
	case seconds%day == 0:
		return fmt.Sprintf("%dd", seconds/day)
	}
	return (time.Duration(seconds) * time.Second).String()
}
