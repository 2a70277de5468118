package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) backupCommand() *cli.Command {
	long := &cli.BoolFlag{Name: "long", Usage: "also parent, bytes, progress, duration, throughput, target, and what is unique to it"}
	return noun("backup", "copies of volumes in a backup target",
		p.verb("create", "VOLUME", "back up a volume or one of its snapshots",
			outputFlags(moveFlags(append(quiesceFlags(),
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the backup; the time if left out"},
				&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
				&cli.StringFlag{Name: "container", Aliases: []string{"target"}, Usage: "`NAME` of the target; may be left out if there is one only"},
				&cli.StringFlag{Name: "snapshot", Usage: "back up this `SNAPSHOT` of the volume instead of its present state"},
				compressionFlag("the target's if left out"),
				&cli.BoolFlag{Name: "incremental", Usage: "only what changed since the newest backup in the target"},
				&cli.BoolFlag{Name: "no-incremental", Usage: "everything (the default)"},
				propertyFlag(),
				&cli.StringFlag{Name: "availability-zone", Usage: "`ZONE`", Hidden: true},
				&cli.BoolFlag{Name: "force", Usage: "also if the volume is in use"})...)...),
			(*call).backupCreate),
		p.backupListVerb(),
		p.verb("show", "BACKUP", "show one backup", outputFlags(long), (*call).backupShow),
		p.backupDiffVerb(),
		p.backupRestoreVerb(),
		p.verb("delete", "BACKUP...", "delete backups",
			waitFlags(&cli.BoolFlag{Name: "force", Usage: "also if incremental backups depend on it; they stay whole"}),
			(*call).backupDelete),
		p.backupExpireVerb(),
		p.backupSetVerb(),
		p.backupUnsetVerb(),
		p.resetVerb("backup", "BACKUP..."),
		p.backupVerifyVerb())
}

// compressionFlag is how hard to compress; otherwise says what holds without it.
func compressionFlag(otherwise string) cli.Flag {
	return &cli.StringFlag{Name: "compression", Usage: "`LEVEL` of zstd: fastest, or default, which stores 3 to 5 % less and takes a third more processor time; " + otherwise}
}

// checkCompression refuses what is no level.
func (c *call) checkCompression() error {
	switch level := c.String("compression"); level {
	case "", "fastest", "default":
		return nil
	default:
		return usagef("--compression %s: it is fastest or default", level)
	}
}

func (c *call) backupCreate() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	quiesce, err := c.quiesce()
	if err != nil {
		return err
	}
	if err := c.checkCompression(); err != nil {
		return err
	}
	switch {
	case c.Bool("incremental") && c.Bool("no-incremental"):
		return usagef("backup create: --incremental or --no-incremental, not both")
	case c.IsSet("availability-zone"):
		return usagef("backup create: there are no availability zones; --container names the target that the backup goes to")
	}
	properties, err := parseProperties("backup create", c.StringSlice("property"))
	if err != nil {
		return err
	}
	b, o, err := client.CreateBackup(c.ctx, api.NewBackup{
		Quiesce:     quiesce,
		VolumeID:    c.args[0],
		Name:        ptr(c.String("name")),
		Description: ptr(c.String("description")),
		Container:   ptr(c.container()),
		Force:       c.Bool("force"),
		Incremental: c.Bool("incremental"),
		SnapshotID:  ptr(c.String("snapshot")),
		Compression: c.String("compression"),
		Metadata:    properties,
	})
	if err != nil {
		return err
	}
	if err := out.show(c.stdout, []field{{"id", b.ID}, {"name", b.Name}}); err != nil {
		return err
	}
	return c.follow(client, o)
}

// container is the name of the target to use: the command's own flag, or the
// program's.
func (c *call) container() string { return cmp.Or(c.String("container"), c.global("target")) }

func (c *call) backupShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	if c.directURL() != "" {
		t, b, err := c.openBackup(c.args[0])
		if err != nil {
			return err
		}
		defer t.Close()
		return c.showBackup(out, b, func() (api.BackupCost, error) { return t.cost(c.ctx, b) })
	}
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	ref, err := c.chosen(client, c.args[0])
	if err != nil {
		return err
	}
	b, err := client.Backup(c.ctx, ref)
	if err != nil {
		return err
	}
	return c.showBackup(out, b, func() (api.BackupCost, error) { return client.BackupCost(c.ctx, b.ID) })
}

// showBackup prints a backup; what it costs is asked only for --long.
func (c *call) showBackup(out format, b api.Backup, cost func() (api.BackupCost, error)) error {
	fields := backupFields(b)
	switch {
	case c.Bool("long"):
		fields = append(fields, backupLongFields(b)...)
		fields = append(fields, c.costFields(b, cost)...)
	case b.Damage != nil:
		fields = append(fields, field{"damage", *b.Damage})
	}
	if len(b.Metadata) > 0 || c.Bool("long") {
		fields = append(fields, field{"properties", b.Metadata})
	}
	if len(b.Forks) > 0 && !c.Bool("long") {
		fields = append(fields, field{"forks", forksOf(b)})
	}
	return out.show(c.stdout, fields)
}

// costFields are None of a backup that is not whole, and where the target does
// not say.
func (c *call) costFields(b api.Backup, cost func() (api.BackupCost, error)) []field {
	none := []field{{"unique_bytes", nil}, {"unique_objects", nil}}
	if b.Status != "available" {
		return none
	}
	paid, err := cost()
	if err != nil {
		c.complain("backup show: what is unique to the backup is left out: ", err)
		return none
	}
	return []field{{"unique_bytes", byteCount(paid.UniqueBytes)}, {"unique_objects", paid.UniqueObjects}}
}

func (c *call) backupDelete() error {
	client, err := c.backupClient()
	if err != nil {
		return err
	}
	return c.eachBackup(client, "delete", func(name string) error {
		o, err := client.DeleteBackup(c.ctx, name, c.Bool("force"))
		if err != nil {
			return err
		}
		return c.follow(client, o)
	})
}

// backupFields are the rows of OpenStack's volume backup show.
func backupFields(b api.Backup) []field {
	return []field{
		{"availability_zone", orNone(b.AvailabilityZone)},
		{"container", b.Container},
		{"created_at", formatTime(b.CreatedAt.Time)},
		{"data_timestamp", formatTime(b.DataTimestamp.Time)},
		{"description", orNone(b.Description)},
		{"fail_reason", orNone(b.FailReason)},
		{"has_dependent_backups", b.HasDependentBackups},
		{"id", b.ID},
		{"is_incremental", b.IsIncremental},
		{"name", b.Name},
		{"object_count", b.ObjectCount},
		{"size", b.Size},
		{"snapshot_id", orNone(b.SnapshotID)},
		{"status", b.Status},
		{"updated_at", formatTime(b.UpdatedAt.Time)},
		{"volume_id", b.VolumeID},
	}
}

// backupLongFields are the rows of Varve's own.
func backupLongFields(b api.Backup) []field {
	var duration, throughput any
	if took := time.Duration(b.DurationMS) * time.Millisecond; took > 0 {
		duration = fmt.Sprintf("%.3f s", took.Seconds())
		throughput = formatBytes(int64(float64(b.ChangedBytes)/took.Seconds())) + "/s"
	}
	return []field{
		{"changed_bytes", byteCount(b.ChangedBytes)},
		{"damage", orNone(b.Damage)},
		{"duration", duration},
		{"forks", forksOf(b)},
		{"host", orNone(b.Host)},
		{"logical_bytes", byteCount(b.LogicalBytes)},
		{"parent_id", orNone(b.ParentID)},
		{"progress", backupShare(b)},
		{"protected", b.Protected},
		{"size_bytes", b.SizeBytes},
		{"stored_bytes", byteCount(b.StoredBytes)},
		{"target", b.TargetURL},
		{"temp_snapshot_id", orNone(b.TempSnapshotID)},
		{"throughput", throughput},
		{"volume_name", b.VolumeName},
	}
}

// backupShare is how much of a backup is stored, in percent.
func backupShare(b api.Backup) any {
	if b.Status == "available" {
		return share(1, 1)
	}
	return share(b.DoneBytes, b.TotalBytes)
}

// ptr is s for a request: nil if it was not given.
func ptr(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// sortNewestFirst is the order of backup list.
func sortNewestFirst(all []api.Backup) {
	slices.SortStableFunc(all, func(a, b api.Backup) int { return b.CreatedAt.Compare(a.CreatedAt.Time) })
}
