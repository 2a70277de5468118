package agent

import (
	"context"
	"io/fs"
	"strings"
	"testing"

	"varve/agent/object"
)

func ptr[T any](v T) *T { return &v }

// Settings are kept, shown, and hold after a new start.
func TestChangeTarget(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := w.start(dir)
	target := must(a.AddTarget(t.Context(), NewTarget{
		Name: "t1", URL: url("t1"), NoEncryption: true, Settings: TargetSettings{MaxUpload: ptr[int64](1 << 20)},
	}))(t)
	if target.MaxUpload != 1<<20 {
		t.Errorf("added with %+v", target)
	}
	must(a.ChangeTarget(t.Context(), "t1", TargetSettings{MaxDownload: ptr[int64](2 << 20), MaxRequests: ptr[int64](5)}, nil))(t)
	for _, c := range []TargetSettings{
		{MaxUpload: ptr[int64](1)}, {MaxRequests: ptr[int64](-1)}, {CAFile: ptr("relative.pem")}, {Proxy: ptr("host:3128")}, {Proxy: ptr("http://u:hunter2@host:1")},
	} {
		if _, err := a.ChangeTarget(t.Context(), "t1", c, nil); ReasonOf(err) != Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: got %v, want it refused", c, err)
		}
	}
	a.Close()
	b := w.start(dir)
	got := must(b.Target(t.Context(), "t1"))(t)
	if got.MaxUpload != 1<<20 || got.MaxDownload != 2<<20 || got.MaxRequests != 5 {
		t.Errorf("after a new start: %+v", got)
	}
	if got := b.targetOf(got).gate.Rates(); got != (object.Rates{Upload: 1 << 20, Download: 2 << 20, Requests: 5}) {
		t.Errorf("rates after a new start: %+v", got)
	}
}

// New credentials are tried first, and then used by those who have the target
// open already. Such that lead elsewhere are refused.
func TestChangeTargetCredentials(t *testing.T) {
	w := newWorld(t)
	c := w.config(t.TempDir())
	var asked []Place
	refuse, url1 := false, url("t1")
	c.OpenStore = func(ctx context.Context, p Place) (object.Store, error) {
		asked = append(asked, p)
		if refuse {
			return nil, &object.Error{Op: "open", Store: p.URL, Err: fs.ErrPermission}
		}
		p.URL = url1
		return w.open(ctx, p)
	}
	a := must(Start(t.Context(), c))(t)
	defer a.Close()
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "one"})

	refuse = true
	if _, err := a.ChangeTarget(t.Context(), "t1", TargetSettings{}, map[string]string{"OS_PASSWORD": "wrong"}); ReasonOf(err) != Denied {
		t.Errorf("credentials that are refused: %v", err)
	}
	refuse, url1 = false, url("t2") // another container, empty
	if _, err := a.ChangeTarget(t.Context(), "t1", TargetSettings{}, map[string]string{"OS_PASSWORD": "other"}); ReasonOf(err) != NotFound {
		t.Errorf("credentials that lead elsewhere: %v", err)
	}
	url1 = url("t1")
	must(a.ChangeTarget(t.Context(), "t1", TargetSettings{Proxy: ptr("http://proxy:3128")}, map[string]string{"OS_PASSWORD": "right"}))(t)
	last := asked[len(asked)-1]
	if last.Env["OS_PASSWORD"] != "right" || last.Proxy != "http://proxy:3128" {
		t.Errorf("opened with %+v", last)
	}
	if secret := must(a.readSecrets(must(a.Target(t.Context(), "t1"))(t).ID))(t); secret.Env["OS_PASSWORD"] != "right" {
		t.Errorf("kept: %v", secret.Env)
	}
	if _, err := a.ChangeTarget(t.Context(), "t1", TargetSettings{}, map[string]string{"PATH": "x"}); ReasonOf(err) != Invalid {
		t.Errorf("a variable that is no credential: %v", err)
	}
	backUp(t, a, NewBackup{Volume: "v", Name: "two"})
}
