package main

import (
	"varve/agent/api"
)

var treeColumns = []string{"Tree", "ID", "Status", "Created At", "Actual Size"}

// maxBranching is how deep branches of branches are shown as such.
const maxBranching = 30

// snapshotTree are the rows of a tree. all is oldest first. Each snapshot stands
// below the one that it was made after. The line that leads to what the volume
// is now stays at the left, however long it is; what was reverted away from
// branches off to the right:
//
//	monday
//	tuesday
//	├─ wednesday
//	│  before-revert
//	thursday
//	● db1 now
//
// Of several volumes there is one tree after the other.
func snapshotTree(all []api.Snapshot) []row {
	t := tree{below: map[string][]api.Snapshot{}, tip: map[string]string{}}
	known := map[string]bool{}
	var volumes []api.Snapshot // the first snapshot of each
	for _, s := range all {
		known[s.ID] = true
		if t.tip[s.VolumeID] == "" {
			t.tip[s.VolumeID] = s.VolumeID
			volumes = append(volumes, s)
		}
		if s.Live {
			t.tip[s.VolumeID] = s.ID
		}
	}
	for _, s := range all {
		at := s.VolumeID
		if s.ParentID != nil && known[*s.ParentID] {
			at = *s.ParentID
		}
		t.below[at] = append(t.below[at], s)
	}
	for _, v := range volumes {
		t.line(v.VolumeID, "", v, 0)
	}
	return t.rows
}

// A tree is what snapshotTree knows of the snapshots.
type tree struct {
	below map[string][]api.Snapshot // by parent; by the volume where there is none
	tip   map[string]string         // by volume: the snapshot, or itself, that it lies on now
	rows  []row
}

// line adds what follows after at in one line, and the branches off it. lead
// stands before each row.
func (t *tree) line(at, lead string, of api.Snapshot, depth int) {
	for {
		next := -1 // the child that goes on with the line
		now := t.tip[of.VolumeID] == at
		children := t.below[at]
		for i, s := range children {
			if !now && (s.Live || next < 0 || !children[next].Live) {
				next = i
			}
		}
		for i, s := range children {
			if i == next {
				continue
			}
			branch, more := lead+"├─ ", lead+"│  "
			if depth >= maxBranching {
				branch, more = lead, lead
			}
			t.add(branch, s)
			t.line(s.ID, more, of, depth+1)
		}
		if now {
			t.rows = append(t.rows, row{lead + "● " + of.VolumeName + " now", nil, nil, nil, nil})
		}
		if next < 0 {
			return
		}
		t.add(lead, children[next])
		at = children[next].ID
	}
}

func (t *tree) add(lead string, s api.Snapshot) {
	t.rows = append(t.rows, row{lead + s.Name, s.ID, s.Status, formatTime(s.CreatedAt.Time), byteCount(s.Bytes)})
}
