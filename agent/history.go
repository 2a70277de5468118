package agent

import (
	"iter"

	"varve/catalog"
	"varve/layers"
)

// A Since is what can be told of the changes since one snapshot. The maps alone
// are asked, no data is read.
type Since struct {
	Snapshot string // its name, or its id where others of the volume have the same name

	// Changes yields the bytes of [off, off+n) that may differ, with the value
	// 1. Once the snapshot is gone it is fs.ErrNotExist.
	Changes func(off, n int64) iter.Seq2[layers.Run, error]
}

// tellHistory adds to an export of a volume, or of its snapshot at, what is
// known of its past.
func (e *Export) tellHistory(data *layers.Volume, volume layers.ID, at layers.ID, snapshots []catalog.Snapshot) {
	e.Depths = func(off, n int64) iter.Seq2[layers.Run, error] { return data.Depths(at, off, n) }
	count := map[string]int{}
	for _, s := range snapshots {
		if s.VolumeID == volume {
			count[s.Name]++
		}
	}
	for _, s := range snapshots {
		if s.VolumeID != volume || s.ID == at || s.System || s.Status != catalog.Available {
			continue
		}
		name := s.Name
		if count[name] > 1 {
			name = s.ID.String()
		}
		e.Since = append(e.Since, Since{name, func(off, n int64) iter.Seq2[layers.Run, error] {
			return data.Changes(s.ID, at, off, n)
		}})
	}
}
