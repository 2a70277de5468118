package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"varve/catalog"
	"varve/layers"
)

// Devices shows exports as block devices of this machine. The package that
// knows the kernel and this one do not know each other; the program gives this
// to both.
type Devices interface {
	// Attach shows e as a block device. A connected device of that identity,
	// which a daemon before this one left, is taken over. ctx bounds the call
	// only. If DeviceOptions.TakeOver is set and there is none, the error wraps
	// fs.ErrNotExist.
	Attach(ctx context.Context, e *Export, o DeviceOptions) (Device, error)
}

// DeviceOptions say how an export is shown.
type DeviceOptions struct {
	Identity     string // what the device is found by; unique on this machine
	Link         string // its name for people: a file name
	TakeOver     bool   // make no new device
	Index        int    // N of /dev/nbdN; below 0: any
	IndexIsAWish bool   // another will do if it is taken
	Connections  int
	BlockSize    int64 // bytes
}

// A Device is an export that is shown as a block device.
type Device interface {
	Index() int
	Path() string // /dev/nbdN

	// Resize makes the kernel show size bytes.
	Resize(size int64) error

	// Rename changes DeviceOptions.Link.
	Rename(link string) error

	// Detach takes the device away. While somebody uses it, the error wraps
	// syscall.EBUSY and nothing changes, unless force is set.
	Detach(ctx context.Context, force bool) error

	// Release leaves the device to the daemon after this one: requests wait.
	// It returns when none is at work in the export any more.
	Release(ctx context.Context) error

	// Gone is closed when the device is detached, by whomever.
	Gone() <-chan struct{}
}

const (
	maxConnections   = 16
	defaultBlockSize = 512
	releaseWithin    = 20 * time.Second // at the end of the daemon
)

// NewAttachment says what to show as a block device. The zero values of all but
// Export are good.
type NewAttachment struct {
	Export      string // volume, or VOLUME@SNAPSHOT, which is read-only
	ReadOnly    bool
	Persist     bool   // attach it again after the machine was started again
	Device      string // /dev/nbdN; empty: any that is free
	Connections int    // 0: 1
	BlockSize   int64  // 512, 1024, 2048 or 4096 bytes; 0: 512
}

// An attached is an export that is shown as a device, or should be.
type attached struct {
	record catalog.Attachment
	volume *volume
	device Device  // nil if it could not be attached at the start
	export *Export // nil with it
}

// Attach shows a volume or a snapshot as a block device of this machine. It
// outlives the daemon: the next one takes the device over.
func (a *Agent) Attach(ctx context.Context, n NewAttachment) (Attachment, error) {
	record, err := a.newAttachment(n)
	if err != nil {
		return Attachment{}, err
	}
	a.attaching.Lock()
	defer a.attaching.Unlock()
	if err := a.mayAttach(record); err != nil {
		return Attachment{}, err
	}
	if err := a.update(func(tx *catalog.Tx) error { return catalog.Attachments.Put(tx, record) }); err != nil {
		return Attachment{}, err
	}
	at, err := a.bring(ctx, record, DeviceOptions{Index: record.Index})
	if err != nil {
		return Attachment{}, errors.Join(err, a.forgetAttachment(record.ID))
	}
	return a.viewAttachment(at)
}

// newAttachment checks what is asked for.
func (a *Agent) newAttachment(n NewAttachment) (catalog.Attachment, error) {
	record := catalog.Attachment{
		ID: layers.NewID(), Export: n.Export, ReadOnly: n.ReadOnly, Persist: n.Persist, Index: -1,
		Connections: cmp.Or(n.Connections, 1), BlockSize: cmp.Or(n.BlockSize, defaultBlockSize), Created: time.Now().UTC(),
	}
	if a.config.Devices == nil {
		return record, fail(Unavailable, "this daemon cannot attach devices")
	}
	if record.Connections < 1 || record.Connections > maxConnections {
		return record, fail(Invalid, "a device has 1 to %d connections, not %d", maxConnections, n.Connections)
	}
	if !slices.Contains([]int64{512, 1024, 2048, 4096}, record.BlockSize) {
		return record, fail(Invalid, "a device has blocks of 512, 1024, 2048 or 4096 bytes, not %d", n.BlockSize)
	}
	if n.Device != "" {
		if _, err := fmt.Sscanf(n.Device, "/dev/nbd%d", &record.Index); err != nil || n.Device != fmt.Sprintf("/dev/nbd%d", record.Index) {
			return record, fail(Invalid, "device %q is not like /dev/nbd0", n.Device)
		}
	}
	what, err := a.subjectOf(n.Export)
	if err != nil {
		return record, err
	}
	record.VolumeID, record.SnapshotID = what.volume, what.snapshot
	record.ReadOnly = record.ReadOnly || !what.snapshot.IsZero()
	if what.size%record.BlockSize != 0 {
		return record, fail(Invalid, "%s has %d bytes, which is no multiple of blocks of %d", n.Export, what.size, record.BlockSize)
	}
	return record, nil
}

// A subject is what can be attached: a volume, or one of its snapshots.
type subject struct {
	volume   layers.ID
	snapshot layers.ID // zero: the volume itself
	size     int64     // bytes
}

// subjectOf returns what VOLUME or VOLUME@SNAPSHOT means.
func (a *Agent) subjectOf(ref string) (subject, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return subject{}, err
	}
	if strings.Contains(ref, "@") {
		s, err := resolveSnapshot(ref, volumes, snapshots)
		return subject{s.VolumeID, s.ID, s.Size}, err
	}
	v, err := resolve("volume", ref, volumes, ofVolume)
	return subject{v.ID, layers.ID{}, v.Size}, err
}

// mayAttach refuses what would give two writers to a volume. The caller holds
// attaching.
func (a *Agent) mayAttach(record catalog.Attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.devices {
		if at.record.VolumeID == record.VolumeID && at.record.SnapshotID == record.SnapshotID {
			return fail(InUse, "%s is attached already%s: detach it first", record.Export, at.where())
		}
	}
	v := a.volumes[record.VolumeID]
	if v != nil && !record.ReadOnly && len(v.attached) > 0 {
		return fail(InUse, "volume %s is open in %d NBD clients, and a file system cannot share it: disconnect them first",
			record.Export, len(v.attached))
	}
	return nil
}

// where is the device, as the end of a phrase.
func (at *attached) where() string {
	if at.device == nil {
		return ""
	}
	return " as " + at.device.Path()
}

// bring shows what a record says. wish holds what the record does not say. The
// caller holds attaching.
func (a *Agent) bring(ctx context.Context, record catalog.Attachment, wish DeviceOptions) (*attached, error) {
	export, link, err := a.openAttached(record)
	if err != nil {
		return nil, err
	}
	wish.Link = link
	wish.Connections, wish.BlockSize = record.Connections, record.BlockSize
	if wish.Identity, err = a.identity(record); err == nil {
		at := &attached{record: record, volume: a.volumeOf(record.VolumeID), export: export}
		if at.device, err = a.config.Devices.Attach(ctx, export, wish); err == nil {
			return at, a.hasDevice(at)
		}
	}
	export.Close() // The first error says more.
	if errors.Is(err, fs.ErrNotExist) && wish.TakeOver {
		return nil, err
	}
	return nil, deviceError("attach "+record.Export, err)
}

// openAttached opens what a record is about, and returns with it the name that
// people find the device by.
func (a *Agent) openAttached(record catalog.Attachment) (e *Export, link string, err error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, "", err
	}
	if link = attachedLink(record, volumes, snapshots); link == "" {
		return nil, "", fail(NotFound, "volume %s is gone", record.VolumeID)
	}
	if !record.SnapshotID.IsZero() {
		e, err = a.exportSnapshot(record.SnapshotID.String(), volumes, snapshots)
		return e, link, err
	}
	e, err = a.exportVolume(record.VolumeID.String(), Attachment{
		ID: record.ID, Export: record.Export, ReadOnly: record.ReadOnly, Persist: record.Persist, Since: record.Created,
	})
	if err == nil && record.ReadOnly {
		e.Writable = false
	}
	return e, link, err
}

// identity tells a device from all others of this machine. It holds where the
// volume's folder is, so that a daemon on a copy of it does not take the device
// of the original for its own.
func (a *Agent) identity(record catalog.Attachment) (string, error) {
	info, err := os.Stat(a.volumeDir(record.VolumeID))
	if err != nil {
		return "", err
	}
	place := ""
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		place = fmt.Sprintf("%x:%x", st.Dev, st.Ino)
	}
	name := record.VolumeID.String()
	if !record.SnapshotID.IsZero() {
		name += "@" + record.SnapshotID.String()
	}
	return deviceName(name) + place, nil
}

// deviceName is how the identity of a device begins that shows a volume, or
// VOLUME@SNAPSHOT, by their ids.
func deviceName(export string) string { return "varve " + export + " " }

func (a *Agent) volumeOf(id layers.ID) *volume {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.volumes[id]
}

// hasDevice records which device shows an export, and keeps it.
func (a *Agent) hasDevice(at *attached) error {
	at.record.Index = at.device.Index()
	err := a.update(func(tx *catalog.Tx) error { return catalog.Attachments.Put(tx, at.record) })
	a.mu.Lock()
	a.devices[at.record.ID] = at
	if attachment, there := at.volume.attached[at.record.ID]; there {
		attachment.Device = at.device.Path()
		at.volume.attached[at.record.ID] = attachment
	}
	a.mu.Unlock()
	a.work.Go(func() { a.watchDevice(at) })
	return err
}

// watchDevice forgets a device that somebody took away.
func (a *Agent) watchDevice(at *attached) {
	select {
	case <-a.ctx.Done():
		return
	case <-at.device.Gone():
	}
	a.mu.Lock()
	_, there := a.devices[at.record.ID]
	a.mu.Unlock()
	if !there {
		return // It was detached by us.
	}
	a.attaching.Lock()
	defer a.attaching.Unlock()
	a.log.Warn("a device was disconnected by another program", "device", at.device.Path(), "export", at.record.Export)
	if err := a.dropDevice(a.ctx, at); err != nil {
		a.log.Error("forget a device", "device", at.device.Path(), "error", err)
	}
}

// dropDevice forgets an attachment whose device is gone.
func (a *Agent) dropDevice(ctx context.Context, at *attached) error {
	if err := a.forgetAttachment(at.record.ID); err != nil {
		return err
	}
	a.mu.Lock()
	delete(a.devices, at.record.ID)
	at.volume.leave(at.record.ID)
	a.mu.Unlock()
	var err error
	if at.device != nil {
		err = errors.Join(at.device.Release(ctx), at.export.Close())
	}
	return errors.Join(err, a.settleUse(at.volume))
}

func (a *Agent) forgetAttachment(id layers.ID) error {
	return a.update(func(tx *catalog.Tx) error { return catalog.Attachments.Delete(tx, id) })
}

// Detach takes a device away. ref is its path, an attachment's id, or what was
// attached. While somebody uses the device, it is an Error of reason InUse that
// says who, unless force is set: then they get I/O errors.
func (a *Agent) Detach(ctx context.Context, ref string, force bool) error {
	a.attaching.Lock()
	defer a.attaching.Unlock()
	at, err := a.findDevice(ref)
	if err != nil {
		return err
	}
	if at.device != nil {
		if err := at.device.Detach(ctx, force); err != nil {
			return deviceError("detach "+at.record.Export, err)
		}
	}
	return a.dropDevice(ctx, at)
}

// findDevice returns the attachment that ref means.
func (a *Agent) findDevice(ref string) (*attached, error) {
	what, err := a.subjectOf(ref)
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, at := range a.devices {
		switch {
		case id.String() == ref, at.device != nil && at.device.Path() == ref:
			return at, nil
		case err == nil && at.record.VolumeID == what.volume && at.record.SnapshotID == what.snapshot:
			return at, nil
		}
	}
	if err != nil && !strings.HasPrefix(ref, "/dev/") {
		return nil, err
	}
	return nil, fail(Conflict, "%s is not attached as a device of this machine, nor in maintenance. NBD clients are ended where they run: "+
		"nbd-client -d, or the end of the virtual machine", ref)
}

// Attachments returns what is shown as devices, oldest first.
func (a *Agent) Attachments(ctx context.Context) ([]Attachment, error) {
	a.mu.Lock()
	all := make([]*attached, 0, len(a.devices))
	for _, at := range a.devices {
		all = append(all, at)
	}
	a.mu.Unlock()
	slices.SortFunc(all, func(x, y *attached) int { return x.record.Created.Compare(y.record.Created) })
	views := make([]Attachment, 0, len(all))
	for _, at := range all {
		view, err := a.viewAttachment(at)
		if err != nil {
			return nil, err
		}
		views = append(views, view)
	}
	return views, nil
}

func (a *Agent) viewAttachment(at *attached) (Attachment, error) {
	view := Attachment{
		ID: at.record.ID, VolumeID: at.record.VolumeID, Export: at.record.Export,
		ReadOnly: at.record.ReadOnly, Persist: at.record.Persist, Since: at.record.Created,
	}
	if at.device != nil {
		view.Device = at.device.Path()
	}
	return view, nil
}

// resizeDevices tells the kernel of a volume's new size.
func (a *Agent) resizeDevices(id layers.ID, size int64) error {
	a.mu.Lock()
	var devices []Device
	for _, at := range a.devices {
		if at.record.VolumeID == id && at.record.SnapshotID.IsZero() && at.device != nil {
			devices = append(devices, at.device)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, d := range devices {
		if err := d.Resize(size); err != nil {
			errs = append(errs, deviceError("the volume has grown, but", err))
		}
	}
	return errors.Join(errs...)
}

// attachAgain brings back at the start what was attached: the devices that wait
// for somebody to serve them, and after a start of the machine those that are to
// be attached for ever.
func (a *Agent) attachAgain(ctx context.Context) error {
	records, err := list(a, catalog.Attachments)
	if err != nil {
		return err
	}
	a.attaching.Lock()
	defer a.attaching.Unlock()
	for _, record := range records {
		if err := a.attachOneAgain(ctx, record); err != nil {
			return err
		}
	}
	return nil
}

// attachOneAgain is attachAgain for one record. Only a catalog that fails is an
// error.
func (a *Agent) attachOneAgain(ctx context.Context, record catalog.Attachment) error {
	err := error(fs.ErrNotExist)
	if a.config.Devices != nil {
		_, err = a.bring(ctx, record, DeviceOptions{TakeOver: !record.Persist, Index: record.Index, IndexIsAWish: true})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && !record.Persist:
		return a.forgetAttachment(record.ID)
	}
	a.log.Error("a volume is not attached again; detach and attach it when that is put right", "export", record.Export, "error", err)
	v := a.volumeOf(record.VolumeID)
	if v == nil {
		return a.forgetAttachment(record.ID)
	}
	// Nobody else gets the volume: the device may still be there, and waiting.
	a.mu.Lock()
	a.devices[record.ID] = &attached{record: record, volume: v}
	v.attached[record.ID] = Attachment{ID: record.ID, Export: record.Export, Since: record.Created}
	a.mu.Unlock()
	return a.settleUse(v)
}

// releaseDevices leaves all devices to the next daemon.
func (a *Agent) releaseDevices() error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseWithin)
	defer cancel()
	a.mu.Lock()
	all := make([]*attached, 0, len(a.devices))
	for _, at := range a.devices {
		all = append(all, at)
	}
	a.mu.Unlock()
	var errs []error
	for _, at := range all {
		if at.device != nil {
			errs = append(errs, at.device.Release(ctx), at.export.Close())
		}
	}
	return errors.Join(errs...)
}

// deviceError is a failure of the kernel or a device that is in use.
func deviceError(doing string, err error) error {
	reason := Unavailable
	switch {
	case errors.Is(err, syscall.EBUSY):
		reason = InUse
	case errors.Is(err, fs.ErrPermission):
		reason = Denied
	case errors.Is(err, fs.ErrInvalid):
		reason = Invalid
	}
	return fail(reason, "%s: %w", doing, err)
}
