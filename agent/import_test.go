package agent

import (
	"testing"

	"varve/catalog"
)

// V8: a volume whose import was cut off is never taken for a good one, whoever
// went first: the importer or the daemon.
func TestImport(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	for _, name := range []string{"whole", "cut", "crash"} {
		v := must(a.CreateVolume(t.Context(), NewVolume{Name: name, Size: mib, Import: true}))(t)
		wantStatus(t, a, name, catalog.Creating, "")
		_, err := a.BeginImport(t.Context(), name)
		wantError(t, err, Conflict)
		attach(t, a, name).detach() // As a client that only looks.
		d := attach(t, a, name)
		must(a.BeginImport(t.Context(), name))(t)
		d.write(1, 0, 4096)
		wantStatus(t, a, name, catalog.Creating, "")
		switch name {
		case "whole":
			must(a.EndImport(t.Context(), v.ID.String()))(t)
			wantStatus(t, a, name, catalog.InUse, "")
			d.detach()
			wantStatus(t, a, name, catalog.Available, "")
			_, err := a.EndImport(t.Context(), name)
			wantError(t, err, Conflict, "not being imported")
		case "cut":
			d.detach()
			wantStatus(t, a, name, catalog.Error, cutImport)
			_, err := a.EndImport(t.Context(), name)
			wantError(t, err, Conflict)
		case "crash":
			a.Close()
			a = w.start(dir)
			wantStatus(t, a, name, catalog.Error, cutImport)
		}
	}
	wantStatus(t, a, "whole", catalog.Available, "")
	for _, name := range []string{"cut", "crash"} {
		if _, err := a.OpenExport(t.Context(), name); err == nil {
			t.Errorf("%s can be opened", name)
		}
		if err := a.DeleteVolume(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func wantStatus(t *testing.T, a *Agent, name string, status catalog.Status, reason string) {
	t.Helper()
	if v := must(a.Volume(t.Context(), name))(t); v.Status != status || v.Reason != reason {
		t.Errorf("volume %s is %s, %q; want %s, %q", name, v.Status, v.Reason, status, reason)
	}
}
