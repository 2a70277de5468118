package agent

import (
	"slices"

	"varve/catalog"
	"varve/layers"
)

// attachedLink is the name that people find the device of a record by: that of
// the volume, or VOLUME@SNAPSHOT, and ids where names are not unique. It is
// empty if the volume is gone.
func attachedLink(record catalog.Attachment, volumes []catalog.Volume, snapshots []catalog.Snapshot) string {
	i := slices.IndexFunc(volumes, func(v catalog.Volume) bool { return v.ID == record.VolumeID })
	if i < 0 {
		return ""
	}
	link := volumes[i].Name
	if slices.ContainsFunc(volumes, func(v catalog.Volume) bool { return v.Name == link && v.ID != record.VolumeID }) {
		link = record.VolumeID.String()
	}
	if record.SnapshotID.IsZero() {
		return link
	}
	named := slices.IndexFunc(snapshots, func(s catalog.Snapshot) bool { return s.ID == record.SnapshotID })
	if named < 0 || slices.ContainsFunc(snapshots, func(s catalog.Snapshot) bool {
		return s.VolumeID == record.VolumeID && s.Name == snapshots[named].Name && s.ID != record.SnapshotID
	}) {
		return link + "@" + record.SnapshotID.String()
	}
	return link + "@" + snapshots[named].Name
}

// renameLinks gives the devices of a volume, and of its snapshots, the links
// that go with its name now. A link that cannot be made is logged: the device
// has its own name still.
func (a *Agent) renameLinks(id layers.ID) error {
	a.attaching.Lock()
	defer a.attaching.Unlock()
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return err
	}
	a.mu.Lock()
	var devices []*attached
	for _, at := range a.devices {
		if at.record.VolumeID == id && at.device != nil {
			devices = append(devices, at)
		}
	}
	a.mu.Unlock()
	for _, at := range devices {
		if err := at.device.Rename(attachedLink(at.record, volumes, snapshots)); err != nil {
			a.log.Warn("a device keeps its old link", "device", at.device.Path(), "error", err)
		}
	}
	return nil
}
