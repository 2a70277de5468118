package main

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
)

// quotaFlags are the flags of quota set; the resource's name has _ for -.
var quotaFlags = map[string]string{
	"backup-gigabytes": "the sizes of all backed up volumes together, in GiB",
	"backups":          "how many backups there may be, those of other hosts in the same targets included",
	"gigabytes":        "the sizes of all volumes together, in GiB",
	"snapshots":        "how many snapshots there may be",
	"volumes":          "how many volumes there may be",
}

func (p *program) quotaCommand() *cli.Command {
	var flags []cli.Flag
	for _, name := range slices.Sorted(maps.Keys(quotaFlags)) {
		flags = append(flags, &cli.StringFlag{Name: name, Usage: "`N`: " + quotaFlags[name] + "; -1: no limit"})
	}
	return noun("quota", "limits on what there may be",
		p.verb("show", "", "show what there is and may be", outputFlags(), (*call).quotaShow),
		p.verb("set", "", "change limits; what is there already stays", outputFlags(flags...), (*call).quotaSet))
}

func (c *call) quotaShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	quota, err := client.Quota(c.ctx)
	if err != nil {
		return err
	}
	return c.printQuota(out, quota)
}

func (c *call) quotaSet() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	limits := map[string]int64{}
	for name := range quotaFlags {
		if !c.IsSet(name) {
			continue
		}
		n, err := strconv.ParseInt(c.String(name), 10, 64)
		if err != nil || n < agent.NoLimit {
			return usagef("quota set: --%s %s: a whole number, 0 or more, or -1 for no limit", name, c.String(name))
		}
		limits[strings.ReplaceAll(name, "-", "_")] = n
	}
	if len(limits) == 0 {
		return usagef("quota set: nothing to set: name a limit, such as --backups 100")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	quota, err := client.SetQuota(c.ctx, limits)
	if err != nil {
		return err
	}
	return c.printQuota(out, quota)
}

func (c *call) printQuota(out format, quota map[string]api.Allowance) error {
	var rows []row
	for _, name := range slices.Sorted(maps.Keys(quota)) {
		rows = append(rows, row{name, quota[name].InUse, quota[name].Limit})
	}
	return out.list(c.stdout, []string{"Resource", "In Use", "Limit"}, rows)
}
