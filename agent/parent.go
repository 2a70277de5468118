package agent

import (
	"fmt"
	"slices"

	"varve/catalog"
	"varve/layers"
)

// changesSinceParent chooses the parent and returns where the volume changed
// since. If there is none to go by, why says so.
func (c *creation) changesSinceParent() (changes *layers.View, why string, err error) {
	before := places(c.data, c.backup.BoundaryID)
	var parent catalog.Backup
	err = c.a.update(func(tx *catalog.Tx) error {
		parent, why = c.chooseParent(tx, before)
		if why != "" {
			return nil
		}
		return c.changeIn(tx, func(b *catalog.Backup) { b.ParentID = parent.ID })
	})
	if err != nil || why != "" {
		return nil, why, err
	}
	diff, err := c.data.Diff(parent.BoundaryID, c.backup.BoundaryID)
	if err != nil {
		return nil, "", dataError("look for what changed since backup "+parent.ID.String(), err)
	}
	return diff, "", nil
}

// chooseParent returns the backup in the target that holds what is latest in
// the chain, of the boundaries that have a place, or says why there is none.
func (c *creation) chooseParent(tx *catalog.Tx, at map[layers.ID]int) (parent catalog.Backup, why string) {
	others := slices.DeleteFunc(all(c.a, tx, catalog.Backups), func(b catalog.Backup) bool {
		return b.VolumeID != c.backup.VolumeID || b.TargetID != c.target.ID || !whole(b) || b.ID == c.backup.ID
	})
	parent, there := newestIn(at, others, c.backup.VolumeID)[c.target.ID]
	switch {
	case len(others) == 0:
		return catalog.Backup{}, "there is no earlier backup of this volume in this target"
	case !there:
		return catalog.Backup{}, "the volume no longer knows what changed since its earlier backups"
	case parent.Damage != "":
		return catalog.Backup{}, fmt.Sprintf("the newest backup, %s, has lost data", parent.Name)
	}
	return parent, ""
}
