package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"time"
)

// Volumes returns the volumes that are wanted, oldest first.
func (c *Client) Volumes(ctx context.Context, p Page) ([]Volume, error) {
	var out volumesBody
	err := c.do(ctx, http.MethodGet, path("volumes")+"?"+p.values().Encode(), nil, &out)
	return out.Volumes, err
}

// Volume returns the volume of that id or name.
func (c *Client) Volume(ctx context.Context, name string) (Volume, error) {
	out, err := get[volumeBody](ctx, c, "volumes", "volume", name)
	return out.Volume, err
}

// CreateVolume makes a volume: an empty one, or a clone.
func (c *Client) CreateVolume(ctx context.Context, n NewVolume) (Volume, error) {
	var out volumeBody
	err := c.do(ctx, http.MethodPost, path("volumes"), newVolumeBody{n}, &out)
	return out.Volume, err
}

// GrowVolume makes a volume size bytes long.
func (c *Client) GrowVolume(ctx context.Context, name string, size int64) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodPost, "volumes", "volume", name, "grow", growBody{NewSize{size}})
	return out.Volume, err
}

// CheckVolume begins to compare a volume's data with its checksums.
func (c *Client) CheckVolume(ctx context.Context, name string, repair bool) (Operation, error) {
	out, err := call[operationBody](ctx, c, http.MethodPost, "volumes", "volume", name, "check", newCheckBody{NewCheck{repair}})
	return out.Operation, err
}

// RevertVolume makes a volume read what a snapshot of it holds, and returns it
// with the snapshot of the state before.
func (c *Client) RevertVolume(ctx context.Context, name, snapshot string) (Volume, Snapshot, error) {
	out, err := call[revertedBody](ctx, c, http.MethodPost, "volumes", "volume", name, "revert", newRevertBody{NewRevert{snapshot}})
	return out.Volume, out.Snapshot, err
}

// ChangeVolume changes what a volume is called and what is kept with it.
func (c *Client) ChangeVolume(ctx context.Context, name string, change VolumeChange) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodPut, "volumes", "volume", name, "", volumeChangeBody{change})
	return out.Volume, err
}

// AdoptVolume makes the daemon's host the one that backs up a volume.
func (c *Client) AdoptVolume(ctx context.Context, name string, n NewClaim) (Claim, error) {
	out, err := call[claimBody](ctx, c, http.MethodPost, "volumes", "volume", name, "adopt", newClaimBody{n})
	return out.Claim, err
}

// BeginMaintenance keeps a volume from its clients.
func (c *Client) BeginMaintenance(ctx context.Context, name string) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodPost, "volumes", "volume", name, "maintenance", nil)
	return out.Volume, err
}

// EndMaintenance gives a volume back to its clients.
func (c *Client) EndMaintenance(ctx context.Context, name string) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodDelete, "volumes", "volume", name, "maintenance", nil)
	return out.Volume, err
}

// BeginImport says that who imports a volume has opened it.
func (c *Client) BeginImport(ctx context.Context, name string) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodPost, "volumes", "volume", name, "import", nil)
	return out.Volume, err
}

// EndImport says that a volume which was created with Importing is complete.
func (c *Client) EndImport(ctx context.Context, name string) (Volume, error) {
	out, err := call[volumeBody](ctx, c, http.MethodDelete, "volumes", "volume", name, "import", nil)
	return out.Volume, err
}

// DeleteVolume removes a volume and its snapshots.
func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	return c.remove(ctx, "volumes", "volume", name)
}

// Snapshots returns the snapshots that are wanted of a volume, or of all if volume
// is empty, oldest first; with system also those that Varve made itself.
func (c *Client) Snapshots(ctx context.Context, volume string, system bool, p Page) ([]Snapshot, error) {
	q := p.values()
	if volume != "" {
		q.Set("volume", volume)
	}
	q.Set("system", strconv.FormatBool(system))
	var out snapshotsBody
	err := c.do(ctx, http.MethodGet, path("snapshots")+"?"+q.Encode(), nil, &out)
	return out.Snapshots, err
}

// Snapshot returns the snapshot of that id or name.
func (c *Client) Snapshot(ctx context.Context, name string) (Snapshot, error) {
	out, err := get[snapshotBody](ctx, c, "snapshots", "snapshot", name)
	return out.Snapshot, err
}

// CreateSnapshot keeps the present state of a volume.
func (c *Client) CreateSnapshot(ctx context.Context, n NewSnapshot) (Snapshot, error) {
	var out snapshotBody
	err := c.do(ctx, http.MethodPost, path("snapshots"), newSnapshotBody{n}, &out)
	return out.Snapshot, err
}

// DeleteSnapshot removes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, name string) error {
	return c.remove(ctx, "snapshots", "snapshot", name)
}

// Backups returns the backups that are wanted of those in all targets, newest
// first.
func (c *Client) Backups(ctx context.Context, f Filter) ([]Backup, error) {
	var out backupsBody
	err := c.do(ctx, http.MethodGet, path("backups")+"?"+f.values().Encode(), nil, &out)
	return out.Backups, err
}

// Backup returns the backup of that id or name.
func (c *Client) Backup(ctx context.Context, name string) (Backup, error) {
	out, err := get[backupBody](ctx, c, "backups", "backup", name)
	return out.Backup, err
}

// CreateBackup begins a backup.
func (c *Client) CreateBackup(ctx context.Context, n NewBackup) (Backup, Operation, error) {
	var out begunBackup
	err := c.do(ctx, http.MethodPost, path("backups"), newBackupBody{n}, &out)
	return out.Backup, out.Operation, err
}

// ChangeBackup changes what of a backup can be changed.
func (c *Client) ChangeBackup(ctx context.Context, name string, change BackupChange) (Backup, error) {
	out, err := call[backupBody](ctx, c, http.MethodPut, "backups", "backup", name, "", backupChangeBody{change})
	return out.Backup, err
}

// DeleteBackup begins to delete a backup.
func (c *Client) DeleteBackup(ctx context.Context, name string, force bool) (Operation, error) {
	name, err := ref("backup", name)
	if err != nil {
		return Operation{}, err
	}
	var out operationBody
	err = c.do(ctx, http.MethodDelete, path("backups", name)+"?force="+strconv.FormatBool(force), nil, &out)
	return out.Operation, err
}

// ExpireBackups decides which backups stay, and begins to delete the others.
func (c *Client) ExpireBackups(ctx context.Context, n NewExpiry) ([]Decision, []Operation, error) {
	var out expiryBody
	err := c.do(ctx, http.MethodPost, path("backups")+"/expire", newExpiryBody{n}, &out)
	return out.Decisions, out.Operations, err
}

// RestoreBackup begins to restore a backup.
func (c *Client) RestoreBackup(ctx context.Context, name string, n NewRestore) (Restore, Operation, error) {
	out, err := call[begunRestore](ctx, c, http.MethodPost, "backups", "backup", name, "restore", newRestoreBody{n})
	return out.Restore, out.Operation, err
}

// VerifyBackup begins to check a backup in its target.
func (c *Client) VerifyBackup(ctx context.Context, name string, deep bool) (Operation, error) {
	out, err := call[operationBody](ctx, c, http.MethodPost, "backups", "backup", name, "verify", newVerifyBody{NewVerify{deep}})
	return out.Operation, err
}

// Targets returns every target, oldest first.
func (c *Client) Targets(ctx context.Context) ([]Target, error) {
	var out targetsBody
	err := c.do(ctx, http.MethodGet, path("targets"), nil, &out)
	return out.Targets, err
}

// Target returns the target of that id or name.
func (c *Client) Target(ctx context.Context, name string) (Target, error) {
	out, err := get[targetBody](ctx, c, "targets", "target", name)
	return out.Target, err
}

// DescribeTarget asks a target about itself.
func (c *Client) DescribeTarget(ctx context.Context, name string) (TargetDescription, error) {
	out, err := call[descriptionBody](ctx, c, http.MethodGet, "targets", "target", name, "description", nil)
	return out.Description, err
}

// AddTarget opens or creates the repository at the URL and remembers it. It
// returns the recovery key of one that was made, which is told this once.
func (c *Client) AddTarget(ctx context.Context, n NewTarget) (t Target, recovery string, err error) {
	var out addedTargetBody
	err = c.do(ctx, http.MethodPost, path("targets"), newTargetBody{n}, &out)
	return out.Target, orEmpty(out.RecoveryKey), err
}

// ChangeTarget changes how a target is used.
func (c *Client) ChangeTarget(ctx context.Context, name string, change TargetChange) (Target, error) {
	out, err := call[targetBody](ctx, c, http.MethodPut, "targets", "target", name, "", targetChangeBody{change})
	return out.Target, err
}

// RemoveTarget forgets a target. The backups stay in it.
func (c *Client) RemoveTarget(ctx context.Context, name string) error {
	return c.remove(ctx, "targets", "target", name)
}

// SyncTarget reads the target's list of backups into the catalog.
func (c *Client) SyncTarget(ctx context.Context, name string) (Target, error) {
	out, err := call[targetBody](ctx, c, http.MethodPost, "targets", "target", name, "sync", nil)
	return out.Target, err
}

// VerifyTarget begins to check all that a target's backups need.
func (c *Client) VerifyTarget(ctx context.Context, name string, n NewTargetVerify) (Operation, error) {
	out, err := call[operationBody](ctx, c, http.MethodPost, "targets", "target", name, "verify", newTargetVerifyBody{n})
	return out.Operation, err
}

// Operations returns the running and the latest ended operations, newest
// first.
func (c *Client) Operations(ctx context.Context) ([]Operation, error) {
	var out operationsBody
	err := c.do(ctx, http.MethodGet, path("operations"), nil, &out)
	return out.Operations, err
}

// Operation returns one operation. With a wait that is not zero it returns
// when the operation has ended or the wait is over.
func (c *Client) Operation(ctx context.Context, id string, wait time.Duration) (Operation, error) {
	id, err := ref("operation", id)
	if err != nil {
		return Operation{}, err
	}
	var out operationBody
	seconds := int(min(wait, maxWait).Seconds())
	err = c.do(ctx, http.MethodGet, path("operations", id)+"?wait="+strconv.Itoa(seconds), nil, &out)
	return out.Operation, err
}

// SetFullSpeed says whether a running operation goes as fast as it can, or makes
// way for those who use volumes.
func (c *Client) SetFullSpeed(ctx context.Context, id string, full bool) (Operation, error) {
	body := operationChangeBody{OperationChange{FullSpeed: full}}
	out, err := call[operationBody](ctx, c, http.MethodPut, "operations", "operation", id, "", body)
	return out.Operation, err
}

// CancelOperation stops a running operation and returns it as it is then.
func (c *Client) CancelOperation(ctx context.Context, id string) (Operation, error) {
	out, err := call[operationBody](ctx, c, http.MethodDelete, "operations", "operation", id, "", nil)
	return out.Operation, err
}

// WatchOperation yields the operation as it stands and after each change, the
// last time when it has ended. An error ends the sequence.
func (c *Client) WatchOperation(ctx context.Context, id string) iter.Seq2[Operation, error] {
	return func(yield func(Operation, error) bool) {
		answer, err := c.send(ctx, http.MethodGet, path("operations", id)+"/events", nil)
		if err != nil {
			yield(Operation{}, err)
			return
		}
		defer answer.Body.Close()
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, maxAnswer) // An operation with many findings is a long line.
		for lines.Scan() {
			var o Operation
			if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
				yield(Operation{}, fmt.Errorf("operation %s: answer of the daemon: %w", id, err))
				return
			}
			if !yield(o, nil) || o.Ended() {
				return
			}
		}
		if ctx.Err() != nil {
			yield(Operation{}, ctx.Err())
			return
		}
		if errors.Is(lines.Err(), bufio.ErrTooLong) {
			yield(Operation{}, fmt.Errorf("operation %s: the daemon sent more than %d bytes for it; \"varve operation list\" says what becomes of it", id, maxAnswer))
			return
		}
		// It stopped before the operation had ended, or the connection broke.
		yield(Operation{}, fmt.Errorf("operation %s: the daemon stopped before its end; start it again, and \"varve operation show %s\" says what became of it", id, id))
	}
}

// Mounts returns what the daemon has mounted.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) {
	var out mountsBody
	err := c.do(ctx, http.MethodGet, path("mounts"), nil, &out)
	return out.Mounts, err
}

// Attachments returns what is shown as devices of the daemon's machine, oldest
// first.
func (c *Client) Attachments(ctx context.Context) ([]Attachment, error) {
	var out attachmentsBody
	err := c.do(ctx, http.MethodGet, path("attachments"), nil, &out)
	return out.Attachments, err
}

// Attach shows a volume or snapshot as a device of the daemon's machine.
func (c *Client) Attach(ctx context.Context, n NewAttachment) (Attachment, error) {
	var out attachmentBody
	err := c.do(ctx, http.MethodPost, path("attachments"), newAttachmentBody{n}, &out)
	return out.Attachment, err
}

// Detach takes a device away, found by its path, its id, or what is attached.
func (c *Client) Detach(ctx context.Context, name string, force bool) error {
	name, err := ref("attachment", name)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path("attachments", name)+"?force="+strconv.FormatBool(force), nil, nil)
}

// Mount shows snapshots and backups at an absolute path.
func (c *Client) Mount(ctx context.Context, dir string) (Mount, error) {
	var out mountBody
	err := c.do(ctx, http.MethodPost, path("mounts"), newMountBody{NewMount{dir}}, &out)
	return out.Mount, err
}

// Unmount ends the mount of that id.
func (c *Client) Unmount(ctx context.Context, id string) error {
	return c.remove(ctx, "mounts", "mount", id)
}

// Quota returns what there is and may be, by resource.
func (c *Client) Quota(ctx context.Context) (map[string]Allowance, error) {
	var out quotaBody
	err := c.do(ctx, http.MethodGet, path("quota"), nil, &out)
	return out.Quota, err
}

// SetQuota changes the limits that are named, and returns all.
func (c *Client) SetQuota(ctx context.Context, limits map[string]int64) (map[string]Allowance, error) {
	var out quotaBody
	err := c.do(ctx, http.MethodPut, path("quota"), newQuotaBody{limits}, &out)
	return out.Quota, err
}

// Status returns the daemon at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out statusBody
	err := c.do(ctx, http.MethodGet, path("status"), nil, &out)
	return out.Status, err
}
