package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"varve/agent/api"
)

func (p *program) volumeCommand() *cli.Command {
	return noun("volume", "block volumes",
		p.verb("create", "NAME", "make an empty volume, or a clone of a snapshot or volume",
			outputFlags(append(quiesceFlags(),
				&cli.StringFlag{Name: "size", Usage: "`SIZE`, such as 10G or 512M; of a clone it may be left out"},
				&cli.StringFlag{Name: "snapshot", Usage: "make a clone of this `SNAPSHOT`"},
				&cli.StringFlag{Name: "source", Usage: "make a clone of this `VOLUME` as it is now"},
				&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
				propertyFlag())...),
			(*call).volumeCreate),
		p.cloneVerb(),
		p.verb("list", "", "list volumes, oldest first", outputFlags(pageFlags("volume")...), (*call).volumeList),
		p.verb("show", "VOLUME", "show one volume",
			outputFlags(&cli.BoolFlag{Name: "long", Usage: "also what it takes on disk and how to attach it"}),
			(*call).volumeShow),
		p.verb("grow", "VOLUME SIZE", "make a volume larger; it may be in use", outputFlags(), (*call).volumeGrow),
		p.setVerb(),
		p.revertVerb(),
		p.checkVerb(),
		p.attachVerb(),
		p.detachVerb(),
		p.importVerb(),
		p.exportVerb(),
		p.adoptVerb(),
		p.resetVerb("volume", "VOLUME..."),
		p.verb("delete", "VOLUME...", "delete volumes and their snapshots; backups stay", nil, (*call).volumeDelete))
}

func (c *call) volumeCreate() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	n := api.NewVolume{Name: c.args[0], SnapshotID: c.String("snapshot"), SourceVolID: c.String("source")}
	if c.String("size") == "" && n.SnapshotID == "" && n.SourceVolID == "" {
		return usagef("volume create: --size is missing, such as --size 10G")
	}
	if n.SnapshotID != "" && n.SourceVolID != "" {
		return usagef("volume create: --snapshot and --source both name what to clone: leave one out")
	}
	return c.createVolume(out, n)
}

// createVolume makes a volume with what the flags say besides.
func (c *call) createVolume(out format, n api.NewVolume) (err error) {
	if size := c.String("size"); size != "" {
		if n.SizeBytes, err = parseSize(size); err != nil {
			return err
		}
	}
	if n.Metadata, err = parseProperties(commandName(c.Context), c.StringSlice("property")); err != nil {
		return err
	}
	if n.Quiesce, err = c.quiesce(); err != nil {
		return err
	}
	n.Description = c.String("description")
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := client.CreateVolume(c.ctx, n)
	if err != nil {
		return err
	}
	return out.show(c.stdout, volumeFields(v))
}

func (c *call) volumeList() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	page, err := c.page()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	all, err := client.Volumes(c.ctx, page)
	if err != nil {
		return err
	}
	var rows []row
	for _, v := range all {
		rows = append(rows, row{v.ID, v.Name, v.Status, v.Size, strings.Join(attachments(v), ", ")})
	}
	return out.list(c.stdout, []string{"ID", "Name", "Status", "Size", "Attached to"}, rows)
}

func (c *call) volumeShow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := client.Volume(c.ctx, c.args[0])
	if err != nil {
		return err
	}
	fields := volumeFields(v)
	if c.Bool("long") {
		fields = append(fields, volumeLongFields(v)...)
	}
	for _, fs := range v.FileSystems {
		if len(fs.SameUUID) > 0 {
			fmt.Fprintln(c.stderr, "varve: "+printable(twinWarning(v.Name, fs)))
		}
	}
	c.warnTakeovers(v)
	return out.show(c.stdout, fields)
}

// twinWarning says what it means that a file system is there twice, and what to
// do.
func twinWarning(volume string, fs api.FileSystem) string {
	cure := map[string]string{
		"xfs": "XFS mounts only one of them at a time: mount the other with -o nouuid, or give it a UUID of its own with " +
			"xfs_admin -U generate DEVICE (mounted once with nouuid before, if its log is not clean)",
		"ext4":  "mount them by device and not by UUID, or give one a UUID of its own with tune2fs -U random DEVICE",
		"btrfs": "do not show both to one kernel, which would mix them up: give one a UUID of its own with btrfstune -u DEVICE first",
	}[fs.Type]
	where := "on volume " + volume
	if fs.Partition > 0 {
		where = fmt.Sprintf("in partition %d of volume %s", fs.Partition, volume)
	}
	return fmt.Sprintf("the %s %s has the UUID of one on %s: %s. %s", fs.Type, where, strings.Join(fs.SameUUID, ", "), fs.UUID, cure)
}

func (c *call) volumeGrow() error {
	out, err := c.output()
	if err != nil {
		return err
	}
	size, err := parseSize(c.args[1])
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	v, err := client.GrowVolume(c.ctx, c.args[0], size)
	if err != nil {
		return err
	}
	if count := nbdClients(v); count > 0 {
		fmt.Fprintf(c.stderr, "volume grow: the NBD connections of %s (%d) keep the size that they began with: "+
			"a client sees the new one when it connects again\n", printable(v.Name), count)
	}
	return out.show(c.stdout, volumeFields(v))
}

// nbdClients is how many clients have the volume open that do not see it grow:
// all but the kernel's devices.
func nbdClients(v api.Volume) int {
	count := 0
	for _, a := range v.Attachments {
		if a.Device == nil {
			count++
		}
	}
	return count
}

func (c *call) volumeDelete() error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.each("volume", "delete", func(name string) error { return client.DeleteVolume(c.ctx, name) })
}

// volumeFields are the rows of OpenStack's volume show.
func volumeFields(v api.Volume) []field {
	return []field{
		{"attachments", attachments(v)},
		{"availability_zone", orNone(v.AvailabilityZone)},
		{"bootable", v.Bootable},
		{"consistencygroup_id", orNone(v.ConsistencyGroup)},
		{"created_at", formatTime(v.CreatedAt.Time)},
		{"description", orNone(v.Description)},
		{"encrypted", v.Encrypted},
		{"id", v.ID},
		{"multiattach", v.Multiattach},
		{"name", v.Name},
		{"os-vol-tenant-attr:tenant_id", orNone(v.TenantID)},
		{"properties", v.Metadata},
		{"replication_status", orNone(v.ReplicationStatus)},
		{"size", v.Size},
		{"snapshot_id", orNone(v.SnapshotID)},
		{"source_volid", orNone(v.SourceVolumeID)},
		{"status", v.Status},
		{"type", v.VolumeType},
		{"updated_at", formatTime(v.UpdatedAt.Time)},
		{"user_id", orNone(v.UserID)},
	}
}

// volumeLongFields are the rows of Varve's own.
func volumeLongFields(v api.Volume) []field {
	usage := []string{}
	for _, s := range v.SnapshotUsage {
		says := fmt.Sprintf("%s: %s", text(&s.Name, s.ID), formatBytes(s.Bytes))
		if s.Exclusive != nil {
			says += fmt.Sprintf(", %s alone", formatBytes(*s.Exclusive))
		}
		usage = append(usage, says)
	}
	fileSystems := []string{}
	for _, fs := range v.FileSystems {
		says := fs.Type + " " + fs.UUID
		if fs.Partition > 0 {
			says = fmt.Sprintf("partition %d: %s", fs.Partition, says)
		}
		fileSystems = append(fileSystems, says)
	}
	return []field{
		{"actual_size", byteCount(v.ActualBytes)},
		{"chain", chainTexts(v.Chain)},
		{"clones", v.Clones},
		{"live_size", byteCount(v.LiveBytes)},
		{"maintenance", v.Maintenance},
		{"size_bytes", int64(v.SizeBytes)},
		{"file_systems", fileSystems},
		{"fail_reason", orNone(v.FailReason)},
		{"hook_timeout", v.HookTimeout},
		{"post_snapshot", orNone(ptr(v.PostSnapshot))},
		{"pre_snapshot", orNone(ptr(v.PreSnapshot))},
		{"previous_status", orNone(v.PreviousStatus)},
		{"snapshot_usage", usage},
		{"uri", v.URI},
	}
}

// chainTexts say how a volume's layers are doing.
func chainTexts(c api.Chain) []string {
	layers := fmt.Sprintf("%d layers", c.Layers)
	if c.Layers == 1 {
		layers = "1 layer"
	}
	texts := []string{layers, fmt.Sprintf("%s in the journal", formatBytes(c.JournalBytes))}
	if c.Shared > 0 {
		texts = append(texts, fmt.Sprintf("%d shared with clones or their origin", c.Shared))
	}
	if c.Unsummed > 0 {
		texts = append(texts, fmt.Sprintf("checksums of %d are being made", c.Unsummed))
	}
	if c.Tidying {
		texts = append(texts, "being tidied")
	}
	if c.Failure != nil {
		texts = append(texts, "takes no more writes: "+*c.Failure)
	}
	return texts
}

// attachments are the clients and devices that have the volume open, a text
// each.
func attachments(v api.Volume) []string {
	out := []string{}
	if v.Maintenance {
		out = append(out, "maintenance, without clients")
	}
	for _, a := range v.Attachments {
		who := "NBD client"
		switch {
		case a.Device != nil:
			who = "device " + *a.Device
		case a.PID != 0:
			who = fmt.Sprintf("NBD client %s (pid %d)", a.Process, a.PID)
		}
		if a.ReadOnly {
			who += ", read-only,"
		}
		out = append(out, fmt.Sprintf("%s of %s since %v", who, a.Export, formatTime(a.AttachedAt.Time)))
	}
	return out
}
