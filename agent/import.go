package agent

import (
	"context"
	"time"

	"varve/catalog"
)

// cutImport is why a volume whose import did not end is in error.
const cutImport = "its import was cut off: delete it and import again"

// BeginImport says that the importer of a volume that was created for an import
// has opened it. From now on its leaving is noticed; clients look at an export
// and leave before that. A volume that is not being imported, or that nobody has
// open, is an Error of reason Conflict.
func (a *Agent) BeginImport(ctx context.Context, ref string) (VolumeView, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	a.mu.Lock()
	if record.Importing && len(v.attached) > 0 {
		v.importer = true
	} else {
		err = fail(Conflict, "volume %s is not being imported, or nobody has it open", record.Name)
	}
	a.mu.Unlock()
	if err != nil {
		return VolumeView{}, err
	}
	return a.Volume(ctx, v.id.String())
}

// importerLeft reports whether the importer had the volume open, and has not
// any more.
func (a *Agent) importerLeft(v *volume) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return v.importer && len(v.attached) == 0
}

// EndImport says that a volume which was created for an import has all of its
// content. Until then it is shown as being created, and when the importer goes
// without having said so, or the daemon is started again, it is in error. A
// volume that is not being imported is an Error of reason Conflict.
func (a *Agent) EndImport(ctx context.Context, ref string) (VolumeView, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	err = a.update(func(tx *catalog.Tx) error {
		now, err := catalog.Volumes.Get(tx, v.id)
		if err == nil && !now.Importing {
			err = fail(Conflict, "volume %s is not being imported", record.Name)
		}
		if err != nil {
			return err
		}
		now.Importing, now.Updated = false, time.Now().UTC()
		return catalog.Volumes.Put(tx, now)
	})
	if err != nil {
		return VolumeView{}, err
	}
	return a.Volume(ctx, v.id.String())
}

// failImport gives a volume whose importer is gone its status.
func failImport(v *catalog.Volume) {
	v.Importing = false
	v.Status, v.Reason, v.Updated = catalog.Error, cutImport, time.Now().UTC()
}
