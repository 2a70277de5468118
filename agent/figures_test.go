package agent

import (
	"fmt"
	"testing"
	"time"

	"varve/layers"
)

// V3: what is live, what each snapshot holds, what it alone holds, and how the
// chain is doing.
func TestFigures(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", 8*mib)
	write(t, a, "v", 1, 0, 4*mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s1"}))(t)
	write(t, a, "v", 2, 0, mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s2"}))(t)
	write(t, a, "v", 3, 0, mib/2)
	for deadline := time.Now().Add(patience); ; { // They are found out in the background.
		v := must(a.Volume(t.Context(), "v"))(t)
		s := must(a.Snapshots(t.Context(), "v", false))(t)
		got := fmt.Sprint(v.Live, v.Allocated, v.Chain.Layers, v.Chain.Failure)
		for i, u := range v.Snapshots {
			got += fmt.Sprint(" ", u.Name, " ", u.Bytes, " ", u.Exclusive)
			if s[i].Usage != u {
				got += " and in the list otherwise"
			}
		}
		const want = "4194304 5767168 3 <nil> s1 4194304 1048576 s2 1048576 524288"
		if got == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	must(a.CreateVolume(t.Context(), NewVolume{Name: "c", Snapshot: "s1"}))(t)
	if v := must(a.Volume(t.Context(), "c"))(t); v.Chain.Shared != 1 || v.Live != 4*mib {
		t.Errorf("a clone: %+v, live %d", v.Chain, v.Live)
	}
}

// The parent of a snapshot is one too: marks are passed over.
func TestParentsPassOverMarks(t *testing.T) {
	a, m, n, b, c := layers.NewID(), layers.NewID(), layers.NewID(), layers.NewID(), layers.NewID()
	f := &figures{boundaries: map[layers.ID]layers.Boundary{
		a: {ID: a}, m: {ID: m, Parent: a, Mark: true}, n: {ID: n, Parent: m, Mark: true}, b: {ID: b, Parent: n}, c: {ID: c, Parent: b},
	}}
	for id, want := range map[layers.ID]layers.ID{a: {}, b: a, c: b, layers.NewID(): {}} {
		if got := f.parent(id); got != want {
			t.Errorf("parent of %s is %s, want %s", id, got, want)
		}
	}
}
