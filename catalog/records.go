package catalog

import (
	"encoding/json"
	"time"

	"varve/layers"
)

// Status is the state of a volume, snapshot or backup, in OpenStack's words.
type Status string

const (
	Creating        Status = "creating"
	Available       Status = "available"
	InUse           Status = "in-use"
	Maintenance     Status = "maintenance" // a volume that is kept from its clients
	BackingUp       Status = "backing-up"
	RestoringBackup Status = "restoring-backup" // a volume that a restore fills
	Restoring       Status = "restoring"        // a backup that a restore reads
	Deleting        Status = "deleting"
	Error           Status = "error"
	ErrorRestoring  Status = "error_restoring"
	ErrorDeleting   Status = "error_deleting"
)

// A Volume is what the catalog knows of a volume. Its data and its size are in
// the volume's own folder; Size here is a copy for listing.
type Volume struct {
	ID             layers.ID
	Name           string
	Description    string
	Size           int64 // bytes
	Status         Status
	PreviousStatus Status // what Status returns to after backing-up; empty otherwise
	Reason         string // why Status is an error; empty otherwise
	Type           string // volume type, "default"
	Bootable       bool
	Maintenance    bool // kept from its clients, whatever Status says besides
	Importing      bool // its content is not all there yet; an importer writes it
	Properties     map[string]string
	SnapshotID     layers.ID     // the snapshot it was made from; zero if none
	SourceVolumeID layers.ID     // the volume it was cloned from; zero if none
	Origins        []layers.ID   // the volumes that it was cloned from, nearest first
	PreSnapshot    string        // shell command that runs before a snapshot; empty: none
	PostSnapshot   string        // and after it
	HookLimit      time.Duration // of either command; 0: the default
	Quiets         []Quiet       // of snapshots that are being made
	Claims         []OwnClaim    `json:",omitempty"` // under which this host writes its backups
	Created        time.Time
	Updated        time.Time
}

// An OwnClaim is that under which this host writes a volume's backups into one
// repository: it took them over from another host, or after the volume was lost.
type OwnClaim struct {
	RepositoryID layers.ID
	ClaimID      layers.ID
	Epoch        uint64
}

// A Quiet is what was done to the users of a volume for one snapshot, and has to
// be undone.
type Quiet struct {
	SnapshotID   layers.ID
	SnapshotName string
	Mounts       []string // file systems that may be frozen, by their mount points
	Hook         bool     // the hook before the snapshot may have run; the one after it is due
}

// Consistency says what a snapshot of a volume in use holds.
type Consistency string

const (
	CrashConsistent Consistency = ""       // what was acknowledged, as after a power cut
	Synced          Consistency = "synced" // besides, what file systems on this host had in memory a moment before
	Frozen          Consistency = "frozen" // file systems on this host, as after unmounting
)

// A Snapshot is the name of a boundary in a volume's chain of layers. Its ID is
// the boundary's.
type Snapshot struct {
	ID          layers.ID
	VolumeID    layers.ID
	Name        string
	Description string
	Size        int64 // bytes, of the volume at that instant
	Status      Status
	Reason      string // why Status is an error; empty otherwise
	Consistency Consistency
	Note        string // what whoever made it should know; empty if nothing
	System      bool   // made by Varve itself, for a backup; hidden from lists
	Created     time.Time
}

// A Backup mirrors a backup in a target, or one that is being made there. Once
// it is available, the target is the only truth about it.
type Backup struct {
	ID             layers.ID
	TargetID       layers.ID
	VolumeID       layers.ID
	VolumeName     string
	Name           string
	Description    string
	Status         Status
	FailReason     string
	SnapshotID     layers.ID // the snapshot that the user named; zero if none
	TempSnapshotID layers.ID // the temporary snapshot while it exists; zero otherwise
	BoundaryID     layers.ID // the boundary in the volume's chain whose data it holds
	ParentID       layers.ID // zero for a full backup
	Size           int64     // bytes, of the volume at that instant
	DataTimestamp  time.Time
	Created        time.Time
	Updated        time.Time
	Logical        int64 // bytes of data that it added, before compression
	Changed        int64 // bytes that may differ from the parent, zeros included; of a full backup all data
	Stored         int64 // bytes that it added to the target
	ObjectCount    int64 // objects that it added to the target
	Duration       time.Duration
	Epoch, Number  uint64    // where it stands in the volume's lineage
	ClaimID        layers.ID // under which it was written; zero: none
	Host           string    // that wrote it; empty: not known
	Protected      bool      // against deletion
	Damage         string    // what of it is lost, as the last verification has it; empty: nothing is known to be
	DamageMode     string    // of the verification that found it: only one as deep finds it whole

	Properties map[string]string `json:",omitempty"`
	Caption    string            `json:",omitempty"` // which one in the target its texts are from; empty: none
}

// A Claim mirrors one in a target: a host took over a volume's backups, and goes
// on from one of them.
type Claim struct {
	ID          layers.ID
	TargetID    layers.ID
	VolumeID    layers.ID
	Epoch       uint64 // the host with the highest is the writer
	After       layers.ID
	AfterEpoch  uint64 // where that backup stands in the lineage
	AfterNumber uint64
	Host        string
	Created     time.Time
}

// An Attachment is a volume or snapshot that is shown as a block device of this
// machine.
type Attachment struct {
	ID          layers.ID
	VolumeID    layers.ID
	SnapshotID  layers.ID // zero: the volume itself
	Export      string    // the name that it was attached by
	ReadOnly    bool
	Persist     bool  // attached again after the machine was started again
	Index       int   // N of /dev/nbdN; below 0: none yet
	Connections int   // sockets of the device, which cannot change
	BlockSize   int64 // bytes
	Created     time.Time
}

// A Target is a backup target: a repository in an object store.
type Target struct {
	ID           layers.ID
	RepositoryID layers.ID // what the repository calls itself
	Name         string
	URL          string // never holds a secret
	Encrypted    bool
	Created      time.Time
	Synced       time.Time // when its list of backups was last read; zero: never

	MaxUpload   int64  `json:",omitempty"` // bytes a second; 0: no limit
	MaxDownload int64  `json:",omitempty"` // bytes a second; 0: no limit
	MaxRequests int64  `json:",omitempty"` // a second; 0: no limit
	CAFile      string `json:",omitempty"` // PEM file of the authorities to trust; empty: the system's
	Proxy       string `json:",omitempty"` // URL; empty: what the daemon's environment says

	VerifyEvery time.Duration `json:",omitempty"` // within which everything is read whole; 0: only when asked
	VerifyRate  int64         `json:",omitempty"` // bytes a second that this may read; 0: the default
	VerifyBegun time.Time     // when it was last begun without being asked; zero: never
	Verified    Verification
}

// A Verification is what the last verification of a target said that came to
// its end.
type Verification struct {
	Operation layers.ID // zero: there was none
	Mode      string    // presence, map, sample or deep
	Ended     time.Time
	Backups   int64
	Packs     int64     // that the backups need
	Read      int64     // of these were read whole at some time
	Oldest    time.Time // when the pack was read whole that was read longest ago; zero: not all were yet
	Damage    int64     // places that were found damaged and left so
}

// OperationState is where an Operation stands.
type OperationState string

const (
	Running   OperationState = "running"
	Succeeded OperationState = "succeeded"
	Failed    OperationState = "failed"
	Canceled  OperationState = "canceled"
)

// A Resource is what a Quota counts, in OpenStack's words.
type Resource string

const (
	VolumeCount     Resource = "volumes"
	VolumeGigabytes Resource = "gigabytes" // the volumes' sizes, each in GiB rounded up
	SnapshotCount   Resource = "snapshots" // those of the system are not counted
	BackupCount     Resource = "backups"
	BackupGigabytes Resource = "backup_gigabytes" // the sizes of the volumes that were backed up
)

// A Quota is how much there may be of each resource. One that is not in it has
// no limit.
type Quota map[Resource]int64

// A Finding is a place of a volume or a target that was damaged.
type Finding struct {
	Layer    layers.ID // zero: a file of the volume itself, or of a target
	File     string    // its name in the volume's folder, or the object's in the target
	Offset   int64     // bytes
	Expected string
	Found    string
	Repaired bool
	Backups  []Loss // what it costs, in a target; the first of it
}

// A Loss is what of a backup cannot be restored.
type Loss struct {
	BackupID   layers.ID
	Name       string
	VolumeName string
	Bytes      int64   // of the volume
	Ranges     []Range // the first of them; none and no bytes: all of a backup that cannot be opened
}

// A Range is a part of a volume, in bytes.
type Range struct{ Off, Len int64 }

// An Operation is work that was recorded before it began and goes on without
// whoever asked for it.
type Operation struct {
	ID        layers.ID
	Kind      string    // "backup create", "backup restore", …
	Subject   layers.ID // the volume, snapshot or backup it makes or changes
	State     OperationState
	Error     string    // why it failed
	Reason    string    // the class of that error, as the agent has them; empty if it did not fail
	Note      string    // what whoever asked should know besides; empty if nothing
	Waits     string    // what it waits for before it goes on; empty if for nothing
	Done      int64     // bytes
	Total     int64     // bytes; 0: not known yet
	Findings  []Finding // of a check or a verification; the first of them
	Damage    int64     // places that it found damaged and left so
	Pruned    *Pruned   // what a pruning did, once it has; nil for all others
	FullSpeed bool      // it does not make way for those who use volumes
	Started   time.Time
	Ended     time.Time // zero while it runs
}

// Pruned says what pruning a target did, or with DryRun would do.
type Pruned struct {
	DryRun         bool
	Packs          Amount   // that were there
	Freed          Amount   // objects that went
	Condemned      Amount   // packs that nothing needs, and that go once the grace is over
	Young          Amount   // packs that nothing needs, but that are younger than the grace
	Repacked       Amount   // packs that what is needed of was copied out of
	Rewritten      Amount   // packs that it was copied to
	Backups        int64    // deleted ones whose last traces went
	WaitingBackups int64    // deleted within the grace
	Retained       int64    // objects that the target's own retention keeps
	Kept           []string // why volumes were left alone, and objects retained
}

// An Amount is a number of objects and their bytes.
type Amount struct{ Objects, Bytes int64 }

// A Checkpoint is how far a running operation got. Only operations that can go
// on under another daemon have one, from the beginning on; it goes with their
// end.
type Checkpoint struct {
	Operation layers.ID
	State     json.RawMessage // what the operation's own code needs to go on
	Saved     time.Time
}
