package agent

import (
	"context"
	"time"

	"varve/catalog"
)

// BeginMaintenance opens a volume for its keeper alone: whoever wants to read
// or write it is refused, also after the daemon was started again, until
// EndMaintenance. Snapshots, backups, reverts and checks go on. A volume that
// somebody has open is refused; one that is in maintenance already stays so.
func (a *Agent) BeginMaintenance(ctx context.Context, ref string) (VolumeView, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	a.awaitLeavers(v)
	v.chain.Lock()
	defer v.chain.Unlock()
	a.mu.Lock()
	_, err = v.usable(record)
	if err == nil && len(v.attached) > 0 {
		err = fail(InUse, "volume %s is in use: disconnect its clients first", record.Name)
	}
	was := v.reserved
	if err == nil {
		v.reserved = true // Before it is recorded, so that nobody comes in between.
	}
	a.mu.Unlock()
	if err != nil {
		return VolumeView{}, err
	}
	if err := a.recordMaintenance(v, true); err != nil {
		a.reserve(v, was)
		return VolumeView{}, err
	}
	return a.Volume(ctx, v.id.String())
}

// EndMaintenance gives a volume back to its clients. One that is not in
// maintenance is an Error of reason Conflict.
func (a *Agent) EndMaintenance(ctx context.Context, ref string) (VolumeView, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	v.chain.Lock()
	defer v.chain.Unlock()
	a.mu.Lock()
	reserved := v.reserved
	a.mu.Unlock()
	if !reserved {
		return VolumeView{}, fail(Conflict, "volume %s is not in maintenance. NBD clients are ended where they run: "+
			"nbd-client -d, or the end of the virtual machine", record.Name)
	}
	if err := a.recordMaintenance(v, false); err != nil {
		return VolumeView{}, err
	}
	a.reserve(v, false)
	return a.Volume(ctx, v.id.String())
}

func (a *Agent) reserve(v *volume, on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v.reserved = on
}

// recordMaintenance records that a volume is in maintenance or not, with the
// status that follows from it.
func (a *Agent) recordMaintenance(v *volume, on bool) error {
	status := catalog.Available
	if on {
		status = catalog.Maintenance
	}
	return a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) {
			r.Maintenance, r.Updated = on, time.Now().UTC()
			if settled(r.Status) {
				r.Status = status
			} else if settled(r.PreviousStatus) {
				r.PreviousStatus = status
			}
		})
	})
}
