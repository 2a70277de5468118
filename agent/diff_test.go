package agent

import (
	"slices"
	"testing"

	"varve/layers"
)

// S9: what changed between two snapshots, in either direction.
func TestDiffSnapshots(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "a"}))(t)
	d := attach(t, a, "v")
	d.write(2, 4096, 8192)
	d.write(3, 2*mib, 4096)
	if err := d.Layer.(*layers.Volume).WriteZeroes(65536, 4096); err != nil {
		t.Fatal(err)
	}
	d.detach()
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "b"}))(t)
	createVolume(t, a, "w", mib)
	must(a.CreateSnapshot(t.Context(), "w", NewSnapshot{Name: "c"}))(t)

	for _, tt := range []struct {
		from, to string
		want     []layers.Extent
	}{
		{"a", "b", []layers.Extent{{Off: 4096, Len: 8192, Kind: layers.Data}, {Off: 65536, Len: 4096, Kind: layers.Zero}, {Off: 2 * mib, Len: 4096, Kind: layers.Data}}},
		{"v@b", "v@a", []layers.Extent{{Off: 4096, Len: 8192, Kind: layers.Data}, {Off: 65536, Len: 4096, Kind: layers.Data}, {Off: 2 * mib, Len: 4096, Kind: layers.Zero}}},
		{"a", "a", nil},
	} {
		diff := must(a.DiffSnapshots(t.Context(), tt.from, tt.to))(t)
		wantError(t, a.DeleteSnapshot(t.Context(), "a"), InUse, "being read")
		var got []layers.Extent
		for e, err := range diff.Extents() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s to %s: %v, want %v", tt.from, tt.to, got, tt.want)
		}
		if err := diff.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err := a.DiffSnapshots(t.Context(), "a", "c")
	wantError(t, err, Invalid, "different volumes")
	_, err = a.DiffSnapshots(t.Context(), "a", "nobody")
	wantError(t, err, NotFound, "nobody")
	if err := a.DeleteSnapshot(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}
