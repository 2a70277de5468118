package agent

import (
	"errors"
	"io/fs"
	"slices"
	"testing"

	"varve/catalog"
	"varve/layers"
)

// B20: a volume is in-use as long as somebody has it open for writing.
func TestVolumeIsInUseWhileItIsOpen(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	v := createVolume(t, a, "v", mib)
	one, two := attach(t, a, "v"), attach(t, a, v.ID.String())
	view := must(a.Volume(t.Context(), "v"))(t)
	if view.Status != catalog.InUse || len(view.Attachments) != 2 || view.Attachments[0].Export != "v" {
		t.Errorf("status %s, attachments %+v", view.Status, view.Attachments)
	}
	one.detach()
	one.detach()
	if got := statusOf(t, a, "v"); got != catalog.InUse {
		t.Errorf("%s with one export closed twice and one open, want in-use", got)
	}
	two.detach()
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("%s with all exports closed, want available", got)
	}
}

// Every name that Exports gives opens, and opens what it says.
func TestExportsAreNamedWithoutDoubt(t *testing.T) {
	a := newWorld(t).start(t.TempDir())
	one := createVolume(t, a, "twin", mib)
	two := createVolume(t, a, "twin", mib)
	createVolume(t, a, "single", mib)
	s1 := must(a.CreateSnapshot(t.Context(), "single", NewSnapshot{Name: "s"}))(t)
	s2 := must(a.CreateSnapshot(t.Context(), "single", NewSnapshot{Name: "s"}))(t)
	must(a.CreateSnapshot(t.Context(), one.ID.String(), NewSnapshot{Name: "s"}))(t)
	var got []string
	for _, e := range must(a.Exports(t.Context()))(t) {
		got = append(got, e.Name)
		opened, err := a.OpenExport(t.Context(), e.Name)
		if err != nil {
			t.Errorf("%s: %v", e.Name, err)
			continue
		}
		if opened.Description != e.Description {
			t.Errorf("%s: listed as %q, opened as %q", e.Name, e.Description, opened.Description)
		}
		opened.Close()
	}
	want := []string{
		one.ID.String(), one.ID.String() + "@s", two.ID.String(),
		"single", "single@" + s1.ID.String(), "single@" + s2.ID.String(),
	}
	if !slices.Equal(got, want) {
		t.Errorf("exports %q, want %q", got, want)
	}
	for _, name := range []string{"twin", "twin@s", "single@s"} {
		_, err := a.OpenExport(t.Context(), name)
		wantError(t, err, Ambiguous)
	}
	for _, name := range []string{"", "@", "x", "x@s", "single@", "single@x", layers.NewID().String()} {
		if _, err := a.OpenExport(t.Context(), name); err == nil {
			t.Errorf("%q opens", name)
		}
	}
}

// I2 as far as the agent goes: images are every snapshot of a user and every
// backup.
func TestImagesAreSnapshotsAndBackups(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	s := must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	write(t, a, "v", 2, 0, mib)
	b := backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	images := must(a.Images(t.Context()))(t)
	want := []Image{
		{ID: s.ID, VolumeID: s.VolumeID, Volume: "v", Name: "s", Size: mib, Time: s.Created},
		{ID: b.ID, VolumeID: b.VolumeID, Volume: "v", Name: "b", Size: mib, Used: mib, Time: b.DataTimestamp},
	}
	if !slices.Equal(images, want) {
		t.Errorf("images %+v, want %+v", images, want)
	}
	same(t, "s", imageContent(t, a, s.ID), pattern(1, mib))
	same(t, "b", imageContent(t, a, b.ID), pattern(2, mib))
	if _, err := a.OpenImage(t.Context(), layers.NewID()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image that is gone: %v, want fs.ErrNotExist", err)
	}
	i := must(a.OpenImage(t.Context(), b.ID))(t)
	wantError(t, a.RemoveTarget(t.Context(), "t1"), InUse)
	i.Close()
	i.Close()
	if err := a.RemoveTarget(t.Context(), "t1"); err != nil {
		t.Error(err)
	}
}
