package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
	"varve/layers"
)

func (p *program) usageVerb() *cli.Command {
	command := p.verb("usage", "[TARGET]", "tell what the backups of each volume take, and what prune would free", outputFlags(), (*call).targetUsage)
	command.Description = "It looks through the whole target, or what --target URL holds. Logical is the data that the backups added, before compression. " +
		"Stored is what they need, also where a deleted backup wrote it. Garbage is what no backup needs: prune frees it, once its graces are over."
	return command
}

func (c *call) targetUsage() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	u, err := c.usage()
	if err != nil {
		return err
	}
	total := row{nil, "(all)", int64(0), byteCount(0), byteCount(0), int64(0)}
	var rows []row
	add := func(r row) {
		rows = append(rows, r)
		total[2] = total[2].(int64) + r[2].(int64)
		total[3] = total[3].(byteCount) + r[3].(byteCount)
		total[4] = total[4].(byteCount) + r[4].(byteCount)
		total[5] = total[5].(int64) + r[5].(int64)
	}
	for _, v := range u.Volumes {
		add(row{v.VolumeID, v.VolumeName, v.Backups, byteCount(v.LogicalBytes), byteCount(v.StoredBytes), v.StoredObjects})
	}
	add(row{nil, "(unfinished)", int64(0), byteCount(0), byteCount(u.UnfinishedBytes), u.UnfinishedObjects})
	add(row{nil, "(garbage)", int64(0), byteCount(0), byteCount(u.GarbageBytes), u.GarbageObjects})
	for _, text := range u.Damage {
		fmt.Fprintf(c.stderr, "damaged, so all that it may need counts as needed: %s\n", printable(text))
	}
	return out.list(c.stdout, []string{"Volume ID", "Volume", "Backups", "Logical", "Stored", "Objects"}, append(rows, total))
}

func (c *call) usage() (api.TargetUsage, error) {
	if c.directURL() != "" {
		if len(c.args) > 0 {
			return api.TargetUsage{}, usagef("target usage: with --target URL no TARGET is named")
		}
		t, err := c.openDirect()
		if err != nil {
			return api.TargetUsage{}, err
		}
		u, err := t.Usage(c.ctx)
		return api.DescribeUsage(u), errors.Join(err, t.Close())
	}
	if len(c.args) == 0 {
		return api.TargetUsage{}, usagef("target usage: TARGET is missing")
	}
	client, err := c.client()
	if err != nil {
		return api.TargetUsage{}, err
	}
	return client.TargetUsage(c.ctx, c.args[0])
}

// cost is what would be freed if the backup alone were deleted.
func (t *bareTarget) cost(ctx context.Context, b api.Backup) (api.BackupCost, error) {
	id, err := layers.ParseID(b.ID)
	if err != nil {
		return api.BackupCost{}, err
	}
	only, err := t.Unique(ctx, id)
	return api.BackupCost{UniqueObjects: only.Objects, UniqueBytes: only.Bytes}, err
}
