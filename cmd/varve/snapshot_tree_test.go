package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"varve/agent/api"
)

// S5: the tree of one and of several volumes, with branches of branches.
func TestSnapshotTree(t *testing.T) {
	// NAME<PARENT, * for live; the volume is the first letter.
	parse := func(text string) (all []api.Snapshot) {
		for word := range strings.FieldsSeq(text) {
			word, live := strings.CutSuffix(word, "*")
			name, parent, _ := strings.Cut(word, "<")
			s := api.Snapshot{ID: name, Name: name, VolumeID: name[:1], VolumeName: name[:1], Live: live}
			if parent != "" {
				s.ParentID = &parent
			}
			all = append(all, s)
		}
		return all
	}
	for _, tt := range []struct{ snapshots, want string }{
		{"", ""},
		{"v1*", "v1|● v now"},
		{"v1* v2<v1* v3<v2*", "v1|v2|v3|● v now"},
		// Reverted to v2, then v5.
		{"v1* v2<v1* v3<v2 v4<v3 v5<v2*", "v1|v2|├─ v3|│  v4|v5|● v now"},
		// Reverted to v1 and nothing since; v3 has a branch of its own.
		{"v1* v2<v1 v3<v1 v4<v3 v5<v3 v6<v5", "v1|├─ v2|├─ v3|│  ├─ v4|│  v5|│  v6|● v now"},
		// The parent was deleted; the volume lies on nothing.
		{"v1 v2<gone v3<v2", "├─ v1|├─ v2|│  v3|● v now"},
		{"v1* w1 v2<v1* w2<w1", "v1|v2|● v now|├─ w1|│  w2|● w now"},
	} {
		var got []string
		for _, r := range snapshotTree(parse(tt.snapshots)) {
			got = append(got, r[0].(string))
		}
		if want := strings.FieldsFunc(tt.want, func(r rune) bool { return r == '|' }); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", tt.snapshots, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	// Branches of branches, deeper than are drawn.
	var deep []api.Snapshot
	for i := range 10000 {
		s := api.Snapshot{ID: fmt.Sprint("a", i), Name: "n", VolumeID: "v", VolumeName: "v"}
		if i > 0 {
			parent := fmt.Sprint("a", i-1)
			s.ParentID = &parent
		}
		other := s
		other.ID = fmt.Sprint("b", i)
		deep = append(deep, s, other)
	}
	rows := snapshotTree(deep)
	widest := 0
	for _, r := range rows {
		widest = max(widest, textWidth(r[0].(string)))
	}
	if len(rows) != len(deep)+1 || widest > 3*maxBranching+10 {
		t.Errorf("%d rows of %d snapshots, %d columns wide", len(rows), len(deep), widest)
	}
}
