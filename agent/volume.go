package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/catalog"
	"varve/layers"
)

// sectorSize is what the size of a volume is a multiple of, in bytes: the
// smallest block that kernels know.
const sectorSize = 512

// What may have a volume for itself. A backup excludes other backups, all else
// excludes everything.
const (
	byBackup   = "a backup"
	byRestore  = "a restore"
	byDeletion = "its deletion"
	byRevert   = "a revert"
	byReset    = "a reset of its state"
)

// NewVolume says what volume to create. Size is in bytes. With a Snapshot or a
// Source it is a clone.
type NewVolume struct {
	Name        string
	Description string
	Size        int64
	Properties  map[string]string
	Snapshot    string  // the snapshot to make it of; empty: none
	Source      string  // the volume to make it of; empty: none
	Quiesce     Quiesce // of Source
	Import      bool    // somebody will write its content and then say EndImport
}

// An Attachment is one opening of a volume: by an NBD client, or as a device of
// this machine.
type Attachment struct {
	ID       layers.ID
	VolumeID layers.ID
	Export   string // the name that it was opened by
	Device   string // /dev/nbdN; empty for an NBD client
	PID      int    // the client's process on this host; 0: not known
	Process  string // its name; empty: not known
	ReadOnly bool
	Persist  bool // it is attached again when the machine was started again
	Since    time.Time
}

// A volume is what the agent has in memory of a volume.
type volume struct {
	id layers.ID

	// chain is held by whoever changes the chain of layers together with the
	// records about it. Reads and writes of data do not need it.
	chain sync.Mutex

	// quiet is held while the users of the volume are made quiet for a
	// snapshot, their hooks included. It comes before chain.
	quiet sync.Mutex

	// These are guarded by Agent.mu.
	data     *layers.Volume // nil if it is not open
	err      error          // why it is not; nil while a restore is about to make it
	attached map[layers.ID]Attachment
	left     chan struct{}     // closed when somebody detaches; nil while nobody waits for that
	readers  map[layers.ID]int // by snapshot: who reads it now
	busy     string            // what has the volume for itself; empty: nothing
	reserved bool              // it is in maintenance: nobody may open it for writing
	importer bool              // who imports it has it open
}

func newVolume(id layers.ID, data *layers.Volume, err error) *volume {
	return &volume{id: id, data: data, err: err, attached: map[layers.ID]Attachment{}, readers: map[layers.ID]int{}}
}

// volumeDir is where a volume's data is.
func (a *Agent) volumeDir(id layers.ID) string {
	return filepath.Join(a.config.State, "volumes", id.String())
}

func (a *Agent) volumeOptions() layers.Options {
	return layers.Options{Log: a.log, Turn: a.courtesy.wait}
}

// CreateVolume makes a volume: an empty one, or a clone.
func (a *Agent) CreateVolume(ctx context.Context, n NewVolume) (catalog.Volume, error) {
	if n.Snapshot != "" || n.Source != "" {
		return a.CloneVolume(ctx, n)
	}
	if err := errors.Join(checkName("volume", n.Name), checkTexts("volume", n.Description, n.Properties), checkSize(n.Size)); err != nil {
		return catalog.Volume{}, firstError(err)
	}
	now := time.Now().UTC()
	record := catalog.Volume{
		ID: layers.NewID(), Name: n.Name, Description: n.Description, Size: n.Size, Status: catalog.Creating,
		Type: "default", Properties: n.Properties, Importing: n.Import, Created: now, Updated: now,
	}
	if err := a.recordVolume(record); err != nil {
		return catalog.Volume{}, err
	}
	data, err := layers.Create(a.volumeDir(record.ID), record.ID, record.Size, a.volumeOptions())
	if err == nil {
		a.addVolume(newVolume(record.ID, data, nil))
		record.Status = catalog.Available
		err = a.update(func(tx *catalog.Tx) error { return catalog.Volumes.Put(tx, record) })
		if err != nil {
			a.dropVolume(record.ID)
			data.Close() // It goes anyway.
		}
	}
	if err != nil {
		return catalog.Volume{}, errors.Join(dataError("create volume "+n.Name, err), a.unmakeVolume(record.ID))
	}
	return record, nil
}

// recordVolume records a volume that is about to be made, if the quota has
// room for it.
func (a *Agent) recordVolume(record catalog.Volume) error {
	return a.update(func(tx *catalog.Tx) error {
		if err := a.admit(tx, demand{catalog.VolumeCount, 1}, demand{catalog.VolumeGigabytes, gigabytes(record.Size)}); err != nil {
			return err
		}
		return catalog.Volumes.Put(tx, record)
	})
}

func (a *Agent) addVolume(v *volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.volumes[v.id] = v
}

// addNewVolume is addVolume for one whose ID some volume may have already: then
// it is false.
func (a *Agent) addNewVolume(v *volume) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.volumes[v.id] != nil {
		return false
	}
	a.volumes[v.id] = v
	return true
}

func (a *Agent) dropVolume(id layers.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.volumes, id)
}

// checkSize refuses a size in bytes that no disk can have. How large a volume
// can be is for layers to say.
func checkSize(size int64) error {
	if size <= 0 || size%sectorSize != 0 {
		return fail(Invalid, "a volume cannot have %d bytes: its size is a positive multiple of %d bytes", size, sectorSize)
	}
	return nil
}

// dataError is a failure of layers: a request that it refuses, or a disk that
// fails.
func dataError(doing string, err error) error {
	reason := Unavailable
	var large *layers.TooLargeError
	switch {
	case errors.As(err, &large):
		reason = TooLarge
	case errors.Is(err, fs.ErrInvalid):
		reason = Invalid
	case errors.Is(err, layers.ErrCorrupt):
		reason = Corrupt
	}
	if errors.Is(err, unix.ENOSPC) {
		return fail(reason, "%s: %w: make room in the file system of the state folder", doing, err)
	}
	return fail(reason, "%s: %w", doing, err)
}

// findVolume returns the record that ref means and the volume in memory.
func (a *Agent) findVolume(ref string) (catalog.Volume, *volume, error) {
	records, err := list(a, catalog.Volumes)
	if err != nil {
		return catalog.Volume{}, nil, err
	}
	record, err := resolve("volume", ref, records, ofVolume)
	if err != nil {
		return catalog.Volume{}, nil, err
	}
	a.mu.Lock()
	v := a.volumes[record.ID]
	a.mu.Unlock()
	if v == nil {
		return catalog.Volume{}, nil, fail(Conflict, "volume %s is %s: try again when that is over", record.Name, record.Status)
	}
	return record, v, nil
}

// usable returns the open volume, or says why nothing can be done with it now.
// The caller holds Agent.mu.
func (v *volume) usable(record catalog.Volume) (*layers.Volume, error) {
	switch {
	case v.busy != "" && v.busy != byBackup:
		return nil, fail(Conflict, "volume %s is taken by %s: try again when that is over", record.Name, v.busy)
	case v.data == nil:
		return nil, v.unusable(record)
	}
	if failed(record.Status) {
		return nil, fail(Conflict, "volume %s is in status %s (%s): restore a backup onto it or delete it",
			record.Name, record.Status, record.Reason)
	}
	return v.data, nil
}

// unusable says why a volume that is not open cannot be used: it was deleted a
// moment ago, or what is on the disk did not open. The caller holds Agent.mu.
func (v *volume) unusable(record catalog.Volume) error {
	if v.err == nil {
		return fail(Conflict, "volume %s is not there yet: try again", record.Name)
	}
	reason := Unavailable
	var (
		own    *Error
		locked *layers.LockedError
	)
	switch {
	case errors.As(v.err, &own):
		reason = own.Reason
	case errors.As(v.err, &locked):
		reason = InUse
	case errors.Is(v.err, layers.ErrCorrupt):
		reason = Corrupt
	}
	return fail(reason, "volume %s cannot be used: %w", record.Name, v.err)
}

// failed reports whether a status is one of the errors.
func failed(s catalog.Status) bool {
	return s == catalog.Error || s == catalog.ErrorRestoring || s == catalog.ErrorDeleting
}

// usable is volume.usable for callers without Agent.mu.
func (a *Agent) usable(record catalog.Volume, v *volume) (*layers.Volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return v.usable(record)
}

// claim gives the volume to one purpose if allowed, called with Agent.mu held,
// has no objection.
func (a *Agent) claim(v *volume, purpose string, allowed func() error) error {
	a.awaitLeavers(v)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := allowed(); err != nil {
		return err
	}
	v.busy = purpose
	return nil
}

// unclaim ends a claim.
func (a *Agent) unclaim(v *volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v.busy = ""
}

// idle says why a volume cannot be given to something that excludes all else.
// The caller holds Agent.mu.
func (v *volume) idle(record catalog.Volume) error {
	switch {
	case v.busy != "":
		return fail(Conflict, "volume %s is taken by %s: wait for it or cancel it", record.Name, v.busy)
	case len(v.attached) > 0:
		return fail(InUse, "volume %s is in use: detach it first", record.Name)
	case len(v.readers) > 0:
		return fail(InUse, "volume %s, or a snapshot of it, is being read, by an export, a mount, a clone or a check: end that first", record.Name)
	}
	return nil
}

// settleUse brings the record's status in line with whether the volume is in
// use. Where a backup holds the status, it changes what that returns to. A
// catalog that takes no changes is no error: what is in memory counts, and the
// next start finds nobody attached.
func (a *Agent) settleUse(v *volume) error {
	err := a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) {
			use := a.useOf(v)
			switch {
			case settled(r.Status):
				r.Status = use
			case settled(r.PreviousStatus):
				r.PreviousStatus = use
			}
			if r.Importing && r.Status == catalog.Available && a.importerLeft(v) {
				failImport(r)
			}
		})
	})
	if errors.Is(err, catalog.ErrReadOnly) || errors.Is(err, catalog.ErrFull) {
		return nil
	}
	return err
}

// settled reports whether a status is one of a volume that nothing happens to.
func settled(s catalog.Status) bool {
	return s == catalog.Available || s == catalog.InUse || s == catalog.Maintenance
}

// useOf is the status of a volume that nothing happens to.
func (a *Agent) useOf(v *volume) catalog.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return v.use()
}

// use is useOf for who holds Agent.mu.
func (v *volume) use() catalog.Status {
	switch {
	case v.reserved:
		return catalog.Maintenance
	case len(v.attached) > 0:
		return catalog.InUse
	}
	return catalog.Available
}

// GrowVolume makes a volume size bytes long. It may be in use.
func (a *Agent) GrowVolume(ctx context.Context, ref string, size int64) (VolumeView, error) {
	if err := checkSize(size); err != nil {
		return VolumeView{}, err
	}
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	v.chain.Lock()
	defer v.chain.Unlock()
	data, err := a.usable(record, v)
	if err != nil {
		return VolumeView{}, err
	}
	if size < data.Size() {
		return VolumeView{}, fail(Invalid, "volume %s cannot shrink from %d to %d bytes: what lies behind the new end would be lost. "+
			"Create a smaller volume and copy what you need", record.Name, data.Size(), size)
	}
	if err := a.recordSize(v, size); err != nil {
		return VolumeView{}, err
	}
	if err := data.Grow(size); err != nil {
		return VolumeView{}, errors.Join(dataError(fmt.Sprintf("grow volume %s to %d bytes", record.Name, size), err),
			a.recordSize(v, data.Size()))
	}
	if err := a.resizeDevices(v.id, size); err != nil {
		return VolumeView{}, err
	}
	return a.Volume(ctx, v.id.String())
}

// recordSize records the size of a volume, if the quota has room for it. A
// crash before the volume has it is put right at the next start.
func (a *Agent) recordSize(v *volume, size int64) error {
	return a.update(func(tx *catalog.Tx) error {
		r, err := catalog.Volumes.Get(tx, v.id)
		if err != nil {
			return err
		}
		if err := a.admit(tx, demand{catalog.VolumeGigabytes, gigabytes(size) - gigabytes(r.Size)}); err != nil {
			return err
		}
		r.Size, r.Updated = size, time.Now().UTC()
		return catalog.Volumes.Put(tx, r)
	})
}

// closeVolumes flushes and closes every volume.
func (a *Agent) closeVolumes() error {
	a.mu.Lock()
	volumes := make([]*volume, 0, len(a.volumes))
	for _, v := range a.volumes {
		volumes = append(volumes, v)
	}
	a.mu.Unlock()
	var errs []error
	for _, v := range volumes {
		a.mu.Lock()
		data := v.data
		v.data, v.err = nil, errStopped
		a.mu.Unlock()
		if data == nil {
			continue
		}
		if err := data.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			errs = append(errs, fail(Unavailable, "close volume %s: %w", v.id, err))
		}
	}
	return errors.Join(errs...)
}
