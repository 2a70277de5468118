package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// timeLayout is how OpenStack writes times: in UTC, without a zone.
const timeLayout = "2006-01-02T15:04:05.000000"

// Time is an instant in OpenStack's text form; the zero time is null.
type Time struct{ time.Time }

// MarshalJSON writes the instant in UTC with microseconds.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format(timeLayout))
}

// UnmarshalJSON reads what MarshalJSON writes.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == nil {
		*t = Time{}
		return nil
	}
	parsed, err := time.Parse(timeLayout, *s)
	if err != nil {
		return fmt.Errorf("time %q: want %s", *s, timeLayout)
	}
	*t = Time{parsed}
	return nil
}

// Schema describes the text form in the OpenAPI document.
func (Time) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeString,
		Nullable:    true,
		Description: "UTC, without a zone",
		Examples:    []any{"2026-02-26T12:20:41.000000"},
	}
}

// A Volume is a volume as Cinder shows it, and what Varve knows besides. A nil
// pointer is null: not set.
type Volume struct {
	ID                string            `json:"id"`
	Name              string            `json:"name"`
	Description       *string           `json:"description"`
	Status            string            `json:"status"`
	Size              int64             `json:"size" doc:"GiB, rounded up"`
	Attachments       []Attachment      `json:"attachments"`
	AvailabilityZone  *string           `json:"availability_zone"`
	Bootable          string            `json:"bootable" enum:"true,false"`
	ConsistencyGroup  *string           `json:"consistencygroup_id"`
	Encrypted         bool              `json:"encrypted"`
	Multiattach       bool              `json:"multiattach"`
	TenantID          *string           `json:"os-vol-tenant-attr:tenant_id"`
	Metadata          map[string]string `json:"metadata"`
	ReplicationStatus *string           `json:"replication_status"`
	SnapshotID        *string           `json:"snapshot_id"`
	SourceVolumeID    *string           `json:"source_volid"`
	VolumeType        string            `json:"volume_type"`
	UserID            *string           `json:"user_id"`
	CreatedAt         Time              `json:"created_at"`
	UpdatedAt         Time              `json:"updated_at"`

	SizeBytes      int64           `json:"size_bytes"`
	PreviousStatus *string         `json:"previous_status"`
	FailReason     *string         `json:"fail_reason" doc:"why the status is an error"`
	Maintenance    bool            `json:"maintenance" doc:"NBD clients are refused"`
	PreSnapshot    string          `json:"pre_snapshot" doc:"shell command that runs before a snapshot of the volume in use"`
	PostSnapshot   string          `json:"post_snapshot" doc:"and after it"`
	HookTimeout    int64           `json:"hook_timeout" doc:"seconds that either may take"`
	ActualBytes    int64           `json:"actual_bytes" doc:"on disk, snapshots included"`
	LiveBytes      int64           `json:"live_bytes" doc:"on disk, that the live volume reads"`
	Clones         []string        `json:"clones" doc:"names of the volumes that were made of it and may share its layers"`
	FileSystems    []FileSystem    `json:"file_systems" doc:"that are on it; empty in lists"`
	TakenOver      []Takeover      `json:"taken_over" doc:"by other hosts, which back it up now; empty in lists"`
	Chain          Chain           `json:"chain"`
	SnapshotUsage  []SnapshotUsage `json:"snapshot_usage" doc:"oldest first"`
	URI            string          `json:"uri" doc:"where NBD clients find it"`
}

// An Attachment is one client that has a volume open, or a device of this
// machine that shows it.
type Attachment struct {
	ID         string  `json:"id"`
	VolumeID   string  `json:"volume_id"`
	Export     string  `json:"export" doc:"the name that was asked for"`
	Device     *string `json:"device" doc:"/dev/nbdN; null for an NBD client"`
	PID        int     `json:"pid" doc:"the client's process on this host; 0: not known"`
	Process    string  `json:"process" doc:"its name"`
	ReadOnly   bool    `json:"read_only"`
	Persist    bool    `json:"persist" doc:"attached again after a start of the machine"`
	AttachedAt Time    `json:"attached_at"`
}

// NewAttachment is a volume or snapshot to show as a device of this machine.
type NewAttachment struct {
	Export      string  `json:"export" doc:"id or name of a volume, or VOLUME@SNAPSHOT"`
	Device      *string `json:"device,omitempty" doc:"/dev/nbdN; any that is free if left out"`
	ReadOnly    bool    `json:"read_only,omitempty"`
	Persist     bool    `json:"persist,omitempty" doc:"attach it again after a start of the machine"`
	Connections int     `json:"connections,omitempty" doc:"sockets to the kernel; 1 if left out"`
	BlockSize   int64   `json:"block_size,omitempty" doc:"bytes; 512 if left out"`
}

// A FileSystem is one that is on a volume, or in a partition of it.
type FileSystem struct {
	Partition int      `json:"partition" doc:"its number, from 1; 0: all of the volume"`
	Type      string   `json:"type" doc:"ext4 (for all its family), xfs, btrfs"`
	UUID      string   `json:"uuid"`
	SameUUID  []string `json:"same_uuid_volumes" doc:"names of the other volumes with that file system; a kernel may refuse to mount it twice"`
}

// Chain is how a volume's layers are doing.
type Chain struct {
	Layers       int     `json:"layers"`
	Shared       int     `json:"shared" doc:"with clones, or with what this is a clone of"`
	Unsummed     int     `json:"unsummed" doc:"whose checksums are still being made"`
	Tidying      bool    `json:"tidying" doc:"space comes back, layers are merged"`
	JournalBytes int64   `json:"journal_bytes" doc:"that would be replayed after a crash now"`
	Failure      *string `json:"failure" doc:"why it takes no more writes until the daemon is started again"`
}

// SnapshotUsage is what one snapshot takes.
type SnapshotUsage struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Bytes     int64  `json:"bytes" doc:"on disk, between it and the snapshot below"`
	Exclusive *int64 `json:"exclusive_bytes" doc:"that would come back if it alone were deleted; null: not known yet"`
}

// NewVolume is a volume to create. One of Size and SizeBytes is set; of a clone
// neither need be.
type NewVolume struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Size        int64             `json:"size,omitempty" doc:"GiB"`
	SizeBytes   int64             `json:"size_bytes,omitempty" doc:"bytes, instead of size"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	SnapshotID  string            `json:"snapshot_id,omitempty" doc:"id or name of a snapshot to clone"`
	SourceVolID string            `json:"source_volid,omitempty" doc:"id or name of a volume to clone as it is now"`
	Importing   bool              `json:"importing,omitempty" doc:"its content will be written by a client, which posts /import below the volume when it has opened it, and deletes that when all is written"`
	Quiesce
}

// VolumeChange says what of a volume to change. What is null stays.
type VolumeChange struct {
	Name         *string           `json:"name,omitempty"`
	Description  *string           `json:"description,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty" doc:"all of it"`
	NoMetadata   bool              `json:"no_metadata,omitempty" doc:"remove all metadata"`
	PreSnapshot  *string           `json:"pre_snapshot,omitempty" doc:"shell command; empty: none"`
	PostSnapshot *string           `json:"post_snapshot,omitempty" doc:"shell command; empty: none"`
	HookTimeout  *int64            `json:"hook_timeout,omitempty" minimum:"0" maximum:"600" doc:"seconds; 0: the default, 30"`
}

// Quiesce says how who uses a volume is made quiet for a snapshot.
type Quiesce struct {
	Freeze      []string `json:"freeze,omitempty" doc:"mount points to freeze besides those that are found"`
	NoFreeze    bool     `json:"no_freeze,omitempty" doc:"freeze no file system"`
	FreezeLimit float64  `json:"freeze_limit,omitempty" minimum:"0" maximum:"300" doc:"seconds that a file system is frozen at most; 0: the default, 10"`
	NoHooks     bool     `json:"no_hooks,omitempty" doc:"run no hooks"`
}

// A Snapshot is a snapshot as Cinder shows it, and what Varve knows besides.
type Snapshot struct {
	ID          string  `json:"id"`
	Name        string  `json:"name"`
	Description *string `json:"description"`
	Status      string  `json:"status"`
	Size        int64   `json:"size" doc:"GiB of the volume at that instant, rounded up"`
	VolumeID    string  `json:"volume_id"`
	CreatedAt   Time    `json:"created_at"`

	VolumeName  string  `json:"volume_name"`
	SizeBytes   int64   `json:"size_bytes"`
	FailReason  *string `json:"fail_reason" doc:"why the status is an error"`
	System      bool    `json:"system" doc:"made by Varve itself"`
	Consistency string  `json:"consistency" enum:"crash,synced,frozen" doc:"what it holds of a file system on this host that was in use"`
	Note        *string `json:"note" doc:"what whoever made it should know"`
	Bytes       int64   `json:"bytes" doc:"on disk, between it and the snapshot below"`
	Exclusive   *int64  `json:"exclusive_bytes" doc:"that would come back if it alone were deleted; null: not known yet"`
	ParentID    *string `json:"parent_id" doc:"the snapshot that it lies on"`
	Live        bool    `json:"live" doc:"the volume lies on it; false: it is on another branch"`
}

// NewSnapshot is a snapshot to create.
type NewSnapshot struct {
	VolumeID    string `json:"volume_id" doc:"id or name"`
	Name        string `json:"name,omitempty" doc:"the time if empty"`
	Description string `json:"description,omitempty"`
	Quiesce
}

// A Backup is a backup as Cinder shows it, and what Varve knows besides.
type Backup struct {
	ID                  string  `json:"id"`
	Name                string  `json:"name"`
	Description         *string `json:"description"`
	Status              string  `json:"status"`
	FailReason          *string `json:"fail_reason"`
	Size                int64   `json:"size" doc:"GiB of the volume, rounded up"`
	VolumeID            string  `json:"volume_id"`
	SnapshotID          *string `json:"snapshot_id"`
	Container           string  `json:"container" doc:"name of the target"`
	AvailabilityZone    *string `json:"availability_zone"`
	IsIncremental       bool    `json:"is_incremental"`
	HasDependentBackups bool    `json:"has_dependent_backups"`
	ObjectCount         int64   `json:"object_count"`
	DataTimestamp       Time    `json:"data_timestamp"`
	CreatedAt           Time    `json:"created_at"`
	UpdatedAt           Time    `json:"updated_at"`

	VolumeName     string  `json:"volume_name"`
	TempSnapshotID *string `json:"temp_snapshot_id"`
	ParentID       *string `json:"parent_id"`
	TargetID       string  `json:"target_id"`
	TargetURL      string  `json:"target_url"`
	SizeBytes      int64   `json:"size_bytes"`
	LogicalBytes   int64   `json:"logical_bytes" doc:"of data that it added, before compression"`
	ChangedBytes   int64   `json:"changed_bytes" doc:"that may differ from the parent, zeros included; of a full backup all data"`
	StoredBytes    int64   `json:"stored_bytes" doc:"that it added to the target"`
	Protected      bool    `json:"protected" doc:"it cannot be deleted"`
	DurationMS     int64   `json:"duration_ms" doc:"milliseconds that its making took"`
	DoneBytes      int64   `json:"done_bytes" doc:"while it is being made or restored"`
	TotalBytes     int64   `json:"total_bytes" doc:"while it is being made or restored; 0: not known yet"`
	Host           *string `json:"host" doc:"that wrote it; null: not known"`
	Forks          []Fork  `json:"forks" doc:"that it is on a side of"`
	Damage         *string `json:"damage" doc:"what of it is lost, as the last verification has it; null: nothing is known to be"`

	Metadata map[string]string `json:"metadata"`
}

// NewBackup is a backup to create, with the fields of Cinder's request.
type NewBackup struct {
	VolumeID           string  `json:"volume_id" doc:"id or name"`
	Name               *string `json:"name,omitempty" doc:"the time if empty"`
	DisplayName        *string `json:"display_name,omitempty" doc:"another word for name"`
	Description        *string `json:"description,omitempty"`
	DisplayDescription *string `json:"display_description,omitempty" doc:"another word for description"`
	Container          *string `json:"container,omitempty" doc:"id or name of the target; may be left out if there is one only"`
	Force              bool    `json:"force,omitempty" doc:"also if the volume is in use"`
	Incremental        bool    `json:"incremental,omitempty" doc:"only what changed since the newest backup in the target"`
	SnapshotID         *string `json:"snapshot_id,omitempty" doc:"id or name of a snapshot of the volume"`
	Compression        string  `json:"compression,omitempty" enum:"fastest,default" doc:"the target's if left out"`

	Metadata map[string]string `json:"metadata,omitempty"`
	Quiesce
}

// NewRestore says where a backup goes.
type NewRestore struct {
	VolumeID *string `json:"volume_id,omitempty" doc:"id or name of a volume to overwrite; a new one is made if empty"`
	Name     *string `json:"name,omitempty" doc:"of the new volume; the source's if empty"`
	Force    bool    `json:"force,omitempty" doc:"must be set to overwrite"`
	Adopt    bool    `json:"adopt,omitempty" doc:"this host backs up the backup's volume from now on: a new volume gets its ID, and the next incremental backup goes on from this one"`

	AllowDamaged bool `json:"allow_damaged,omitempty" doc:"restore what is left of a damaged backup: what is lost reads as zeros, and the operation's findings list it"`
}

// A Restore is a restore that has begun.
type Restore struct {
	BackupID   string `json:"backup_id"`
	VolumeID   string `json:"volume_id"`
	VolumeName string `json:"volume_name"`
}

// A Target is a backup target.
type Target struct {
	ID           string `json:"id"`
	RepositoryID string `json:"repository_id"`
	Name         string `json:"name"`
	URL          string `json:"url"`
	Encrypted    bool   `json:"encrypted"`
	CreatedAt    Time   `json:"created_at"`
	SyncedAt     Time   `json:"synced_at" doc:"when its list of backups was last read"`

	MaxUpload   int64   `json:"max_upload" doc:"bytes a second; 0: no limit"`
	MaxDownload int64   `json:"max_download" doc:"bytes a second; 0: no limit"`
	MaxRequests int64   `json:"max_requests" doc:"a second; 0: no limit"`
	CAFile      *string `json:"ca_file" doc:"of the daemon's machine; null: the system's authorities"`
	Proxy       *string `json:"proxy" doc:"null: as the daemon's environment says"`

	VerifyEvery int64 `json:"verify_every" doc:"seconds within which the daemon reads everything whole; 0: only when asked"`
	VerifyRate  int64 `json:"verify_rate" doc:"bytes a second that this reads at most; 0: the default, 20 MiB"`

	Verified *Verification `json:"verified" doc:"the last verification that came to its end; null: none did"`
}

// A Verification is what the last verification of a target said.
type Verification struct {
	OperationID string `json:"operation_id"`
	Mode        string `json:"mode" enum:"presence,map,sample,deep"`
	EndedAt     Time   `json:"ended_at"`
	Backups     int64  `json:"backups"`
	Packs       int64  `json:"packs" doc:"objects with data or maps that the backups need"`
	Read        int64  `json:"read" doc:"of these were read whole at some time, and were sound"`
	OldestAt    Time   `json:"oldest_at" doc:"when the pack was read whole that was read longest ago; null: not all were yet"`
	Damage      int64  `json:"damage" doc:"places that were found damaged and left so"`
}

// NewTargetVerify says how to verify a target.
type NewTargetVerify struct {
	Mode      string `json:"mode,omitempty" enum:"presence,map,sample,deep" doc:"map if left out"`
	Samples   int    `json:"samples,omitempty" minimum:"0" doc:"frames that sample reads; 0: the default"`
	MaxRate   int64  `json:"max_rate,omitempty" minimum:"0" doc:"bytes a second that are read at most; 0: no limit"`
	Repair    bool   `json:"repair,omitempty" doc:"write anew what is damaged, from what other backups and the volumes have"`
	OlderThan int64  `json:"older_than,omitempty" minimum:"0" doc:"seconds: deep leaves out packs that were read since; 0: none"`
}

// NewTarget is a target to add. Its key and credentials are kept in the
// daemon's state folder and never shown again.
type NewTarget struct {
	Name         string `json:"name"`
	URL          string `json:"url" doc:"file:///…, swift://… or s3://…, without credentials"`
	Passphrase   string `json:"passphrase,omitempty" writeOnly:"true" doc:"or a recovery key"`
	KeyFile      []byte `json:"key_file,omitempty" writeOnly:"true" doc:"content of a key file: 32 random bytes or more"`
	NoEncryption bool   `json:"no_encryption,omitempty"`
	Compression  string `json:"compression,omitempty" enum:"fastest,default" doc:"of a new repository, for backups that ask for none; fastest if left out"`
	TargetChange
}

// TargetChange is what of a target to change; what is left out stays.
type TargetChange struct {
	MaxUpload   *int64            `json:"max_upload,omitempty" doc:"bytes a second; 0: no limit"`
	MaxDownload *int64            `json:"max_download,omitempty" doc:"bytes a second; 0: no limit"`
	MaxRequests *int64            `json:"max_requests,omitempty" doc:"a second; 0: no limit"`
	CAFile      *string           `json:"ca_file,omitempty" doc:"absolute path of a PEM file; empty: the system's authorities"`
	VerifyEvery *int64            `json:"verify_every,omitempty" minimum:"0" doc:"seconds; 0: only when asked"`
	VerifyRate  *int64            `json:"verify_rate,omitempty" minimum:"0" doc:"bytes a second; 0: the default, 20 MiB"`
	Proxy       *string           `json:"proxy,omitempty" doc:"http://HOST:PORT; empty: as the daemon's environment says"`
	Credentials map[string]string `json:"credentials,omitempty" writeOnly:"true" doc:"OS_…, ST_… and AWS_… variables, in place of all old ones"`
}

// A Finding is a place of a volume or a target that was damaged.
type Finding struct {
	LayerID  *string `json:"layer_id" doc:"null: a file of the volume itself, or of a target"`
	File     string  `json:"file" doc:"in the volume's folder, or the object in the target"`
	Offset   int64   `json:"offset" doc:"bytes in the file; of data of a volume, in the volume too"`
	Expected string  `json:"expected"`
	Found    string  `json:"found"`
	Repaired bool    `json:"repaired"`
	Backups  []Loss  `json:"backups" doc:"in a target: whose data it costs, the first of them"`
}

// A Loss is what of a backup cannot be restored.
type Loss struct {
	BackupID   string  `json:"backup_id"`
	Name       string  `json:"name"`
	VolumeName string  `json:"volume_name"`
	Bytes      int64   `json:"bytes" doc:"of the volume"`
	Ranges     []Range `json:"ranges" doc:"the first of them; empty: the backup cannot be opened"`
}

// A Range is a part of a volume.
type Range struct {
	Offset int64 `json:"offset" doc:"bytes"`
	Length int64 `json:"length" doc:"bytes"`
}

// An Operation is work that goes on without whoever asked for it.
type Operation struct {
	ID         string    `json:"id"`
	Kind       string    `json:"kind"`
	SubjectID  string    `json:"subject_id" doc:"the object that it makes or changes"`
	State      string    `json:"state" enum:"running,succeeded,failed,canceled"`
	Error      *string   `json:"error"`
	Reason     *string   `json:"reason" doc:"the class of the error, such as unavailable or corrupt"`
	Note       *string   `json:"note" doc:"what whoever asked should know besides"`
	WaitsFor   *string   `json:"waits_for" doc:"what it waits for before it goes on"`
	DoneBytes  int64     `json:"done_bytes"`
	TotalBytes int64     `json:"total_bytes" doc:"0: not known yet"`
	Findings   []Finding `json:"findings" doc:"what a check or a verification found, the first of it"`
	Damage     int64     `json:"damage" doc:"places that it found damaged and left so"`
	Pruned     *Pruned   `json:"pruned" doc:"what a pruning did, once it has"`
	FullSpeed  bool      `json:"full_speed" doc:"it does not make way for those who use volumes"`
	StartedAt  Time      `json:"started_at"`
	EndedAt    Time      `json:"ended_at"`
}

// OperationChange is what may be changed of an operation while it runs.
type OperationChange struct {
	FullSpeed bool `json:"full_speed" doc:"go as fast as possible, and do not make way for those who use volumes"`
}

// Pruned is what pruning a target did, or with dry_run would do.
type Pruned struct {
	DryRun           bool     `json:"dry_run"`
	PackObjects      int64    `json:"pack_objects" doc:"packs that were there"`
	PackBytes        int64    `json:"pack_bytes"`
	FreedObjects     int64    `json:"freed_objects" doc:"objects that went"`
	FreedBytes       int64    `json:"freed_bytes"`
	CondemnedObjects int64    `json:"condemned_objects" doc:"packs that nothing needs, and that go once the grace is over"`
	CondemnedBytes   int64    `json:"condemned_bytes"`
	YoungObjects     int64    `json:"young_objects" doc:"packs that nothing needs, but that are younger than the grace"`
	YoungBytes       int64    `json:"young_bytes"`
	RepackedObjects  int64    `json:"repacked_objects" doc:"packs that what is needed of was copied out of; they go later"`
	RepackedBytes    int64    `json:"repacked_bytes"`
	RewrittenObjects int64    `json:"rewritten_objects" doc:"packs that it was copied to"`
	RewrittenBytes   int64    `json:"rewritten_bytes"`
	Backups          int64    `json:"backups" doc:"deleted backups whose last traces went"`
	WaitingBackups   int64    `json:"waiting_backups" doc:"backups that were deleted within the grace"`
	Retained         int64    `json:"retained_objects" doc:"that were to go and that the target's own retention keeps; not among those freed"`
	Kept             []string `json:"kept" doc:"why volumes were left alone, since something in them cannot be read, and why objects were retained"`
}

// NewPrune says how to prune a target.
type NewPrune struct {
	DryRun       bool    `json:"dry_run,omitempty" doc:"only say what would go"`
	GraceSeconds float64 `json:"grace_seconds,omitempty" minimum:"0" doc:"how long what is condemned stays; 0: 24 hours. A shorter one is safe only while no backup is made"`
	RepackBelow  *int    `json:"repack_below,omitempty" minimum:"0" maximum:"100" doc:"percentage of a pack below which what is needed of it is copied into a new pack, small packs with others; 0: nothing is copied. 60 if it is left out"`
}

// Ended reports whether the operation runs no more.
func (o Operation) Ended() bool { return !o.EndedAt.IsZero() }

// A Mount is a directory where the daemon shows snapshots and backups.
type Mount struct {
	ID        string `json:"id"`
	Path      string `json:"path"`
	CreatedAt Time   `json:"created_at"`
}

// NewMount is a mount to make.
type NewMount struct {
	Path string `json:"path" doc:"absolute; the directory is there and empty"`
}

// Status is the daemon at a glance.
type Status struct {
	State         string         `json:"state" doc:"the state folder"`
	PID           int            `json:"pid"`
	Version       string         `json:"version"`
	StartedAt     Time           `json:"started_at"`
	FreeBytes     int64          `json:"free_bytes" doc:"in the file system of the state folder"`
	CapacityBytes int64          `json:"capacity_bytes"`
	Volumes       int            `json:"volumes"`
	InUse         int            `json:"in_use"`
	Snapshots     int            `json:"snapshots"`
	Backups       int            `json:"backups"`
	Targets       []TargetStatus `json:"targets"`
	Running       []Operation    `json:"running"`
	Mounts        []Mount        `json:"mounts"`
	Warnings      []string       `json:"warnings" doc:"what an operator should look at"`
}

// TargetStatus is a target and whether it answers.
type TargetStatus struct {
	Target
	Backups int     `json:"backups"`
	Error   *string `json:"error" doc:"why it does not answer"`
}
