package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/s3"
	"varve/agent/object/swift"
	"varve/catalog"
	"varve/e2e/testbed"
)

// A wire is the way to a real server, with what can be done to it. A client
// comes first to cuts, then to spoils.
type wire struct {
	cuts   *testbed.Proxy
	spoils *testbed.FaultProxy
	url    string
	open   func(context.Context, Place) (object.Store, error)
	kill   func()
	back   func() error
	env    map[string]string
	secret string // must not be seen anywhere
}

func newWire(t *testing.T, server string) *wire {
	w := &wire{spoils: testbed.NewFaultProxy(t, server)}
	w.cuts = testbed.NewProxy(t, w.spoils.URL)
	return w
}

func swiftWire(t *testing.T) *wire {
	server := testbed.Swift(t)
	w := newWire(t, server.URL)
	w.env = server.EnvVia(w.cuts.Address)
	w.url, w.secret = "swift://faults", w.env["ST_KEY"]
	w.open = func(ctx context.Context, p Place) (object.Store, error) {
		u, err := object.ParseURL(p.URL)
		if err != nil {
			return nil, err
		}
		return swift.Create(ctx, u, p.Env)
	}
	w.kill, w.back = server.Object.Kill, server.Object.Restart
	return w
}

func s3Wire(t *testing.T) *wire {
	server := testbed.S3(t)
	w := newWire(t, server.URL)
	w.env = server.Env()
	w.url, w.secret = "s3://faults?endpoint=http://"+w.cuts.Address, w.env["AWS_SECRET_ACCESS_KEY"]
	w.open = func(ctx context.Context, p Place) (object.Store, error) {
		u, err := object.ParseURL(p.URL)
		if err != nil {
			return nil, err
		}
		return s3.Create(ctx, u, p.Env)
	}
	w.kill, w.back = server.Process.Kill, server.Process.Restart
	return w
}

func (w *wire) heal() {
	w.cuts.Heal()
	w.spoils.Set(nil)
}

// A netFault is something that goes wrong between a daemon and its target.
type netFault struct {
	name  string
	begin func(*wire)
	must  string // "complete", "fail" with reason, or "" for either
	part  string // of the reason
}

// some lets one request in n of a kind meet the fault, of those that ask the
// same: who tries again meets it n-1 times less, whatever others do meanwhile.
func some(n int, is func(*http.Request) bool, f testbed.Fault) func(*wire) {
	return func(w *wire) {
		count := make(map[string]int)
		w.spoils.Set(func(r *http.Request) testbed.Fault {
			if !is(r) {
				return testbed.Fault{}
			}
			key := r.Method + r.RequestURI + r.Header.Get("Range")
			if count[key]++; (count[key]-1)%n != 0 {
				return testbed.Fault{}
			}
			return f
		})
	}
}

// first lets the first n requests of a kind meet the fault.
func first(n int, is func(*http.Request) bool, f testbed.Fault) func(*wire) {
	return func(w *wire) {
		left := n
		w.spoils.Set(func(r *http.Request) testbed.Fault {
			if !is(r) || left == 0 {
				return testbed.Fault{}
			}
			left--
			return f
		})
	}
}

func isAny(*http.Request) bool   { return true }
func isPut(r *http.Request) bool { return r.Method == http.MethodPut }
func isListing(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get("Range") == ""
}
func isObject(r *http.Request) bool { return r.Method == http.MethodGet && r.Header.Get("Range") != "" }

const faultSize = 6 * mib // incompressible, so this much is sent

// Whatever happens between a daemon and a real server, a backup is whole or in
// error with its reason, a retry completes, a restore is exact or in error,
// nothing hangs, and no secret is told. B4, B5, B11, B14
func TestNetworkFaults(t *testing.T) {
	for name, wire := range map[string]func(*testing.T) *wire{"swift": swiftWire, "s3": s3Wire} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := wire(t)
			h := newFaultyHost(t, w)
			for _, f := range uploadFaults() {
				t.Run(f.name, func(t *testing.T) { h.backup(t, f) })
			}
			backUp(t, h.a, NewBackup{Volume: "v", Name: "kept"})
			for _, f := range downloadFaults() {
				t.Run(f.name, func(t *testing.T) { h.restore(t, f) })
			}
			t.Run("server killed and back", h.killed)
			t.Run("credentials revoked and renewed", h.revoked)
			if log := h.logged(); strings.Contains(log, w.secret) || strings.Contains(log, testPassphrase) {
				t.Error("a secret is in the log")
			}
		})
	}
}

func uploadFaults() []netFault {
	faults := []netFault{
		{"latency", func(w *wire) { w.cuts.Delay(20 * time.Millisecond) }, "complete", ""},
		{"500 now and then", some(3, isAny, testbed.Fault{Status: 500, Body: "<html>oops</html>"}), "complete", ""},
		{"500 for ever", some(1, isAny, testbed.Fault{Status: 500}), "fail", "500"},
		{"503 storm that passes", first(5, isAny, testbed.Fault{Status: 503}), "complete", ""},
		{"503 storm that stays", some(1, isPut, testbed.Fault{Status: 503}), "fail", "503"},
		{"429 with Retry-After", first(1, isPut, testbed.Fault{Status: 429, RetryAfter: 1}), "complete", ""},
		{"498", first(2, isPut, testbed.Fault{Status: 498}), "complete", ""},
		{"answers to uploads are lost", some(2, isPut, testbed.Fault{Status: 502, After: true}), "complete", ""},
		{"full", some(1, isPut, testbed.Fault{Status: 507}), "fail", "make room"},
		{"stale listings", some(1, isListing, testbed.Fault{StaleListing: true}), "complete", ""},
		{"reset", func(w *wire) { w.cuts.Reset() }, "fail", "tries"},
		{"read-only", some(1, isPut, testbed.Fault{Status: 403}), "fail", "forbids"},
	}
	for tenth := int64(1); tenth < 10; tenth++ {
		faults = append(faults, netFault{
			fmt.Sprintf("uploads cut at %d0 %%", tenth), func(w *wire) { w.cuts.CutUpload(faultSize * tenth / 10) }, "fail", "tries",
		})
	}
	return faults
}

func downloadFaults() []netFault {
	faults := []netFault{
		{"truncated bodies", some(3, isObject, testbed.Fault{Truncate: 1000}), "complete", ""},
		{"ranges ignored", some(1, isObject, testbed.Fault{IgnoreRange: true}), "fail", ""},
		{"other ranges", some(1, isObject, testbed.Fault{ShiftRange: 100}), "fail", "range"},
		{"false ranges", some(2, isObject, testbed.Fault{FalseRange: 100}), "fail", ""},
		{"stale listings of nothing", some(1, isListing, testbed.Fault{StaleListing: true}), "complete", ""},
	}
	for tenth := int64(1); tenth < 10; tenth++ {
		faults = append(faults, netFault{
			fmt.Sprintf("downloads cut at %d0 %%", tenth), func(w *wire) { w.cuts.CutDownload(faultSize * tenth / 10) }, "", "",
		})
	}
	return faults
}

const testPassphrase = "correct horse battery staple"

// A faultyHost is a daemon whose target is behind a wire, with a volume "v".
type faultyHost struct {
	*world
	wire   *wire
	a      *Agent
	serial uint64
}

func newFaultyHost(t *testing.T, w *wire) *faultyHost {
	h := &faultyHost{world: newWorld(t), wire: w}
	c := h.config(t.TempDir())
	c.OpenStore = w.open
	c.Retry = object.Policy{Base: time.Millisecond, Max: 20 * time.Millisecond, Tries: 6}
	h.a = must(Start(context.Background(), c))(t)
	t.Cleanup(func() {
		if err := h.a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	h.a.insistence = insistence{first: time.Millisecond, most: 10 * time.Millisecond, limit: 40 * time.Millisecond}
	must(h.a.AddTarget(t.Context(), NewTarget{Name: "t1", URL: w.url, Env: w.env, Passphrase: testPassphrase}))(t)
	createVolume(t, h.a, "v", faultSize)
	return h
}

// fill gives the volume content that no backup has.
func (h *faultyHost) fill(t *testing.T) []byte {
	h.serial++
	write(t, h.a, "v", h.serial, 0, faultSize)
	return content(t, h.a, "v")
}

func (h *faultyHost) backup(t *testing.T, f netFault) {
	want := h.fill(t)
	f.begin(h.wire)
	b, op, err := h.a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: f.name})
	if err != nil {
		h.wire.heal()
		t.Fatal(err)
	}
	last := finish(t, h.a, op)
	h.wire.heal()
	record := must(h.a.Backup(t.Context(), b.ID.String()))(t)
	h.hold(t, f, last)
	switch {
	case last.State == catalog.Succeeded && record.Status != catalog.Available:
		t.Errorf("the operation succeeded, the backup is in status %s", record.Status)
	case last.State != catalog.Succeeded && (record.Status != catalog.Error || record.FailReason == ""):
		t.Errorf("the operation failed, the backup is in status %s with the reason %q", record.Status, record.FailReason)
	}
	if got := must(h.a.Volume(t.Context(), "v"))(t); got.Status != catalog.Available {
		t.Errorf("the volume is in status %s", got.Status)
	}
	if record.Status != catalog.Available {
		record = backUp(t, h.a, NewBackup{Volume: "v", Name: f.name + ", again"})
	}
	h.exact(t, record.ID.String(), want)
	h.forget(t, b.ID.String(), record.ID.String())
}

// hold holds the end of an operation to what the fault allows.
func (h *faultyHost) hold(t *testing.T, f netFault, last catalog.Operation) {
	t.Helper()
	failed := last.State != catalog.Succeeded
	if f.must == "complete" && failed || f.must == "fail" && !failed {
		t.Errorf("%s: %s, must %s", last.State, last.Error, f.must)
	}
	if failed && !strings.Contains(last.Error, f.part) {
		t.Errorf("the reason is %q, want it to say %q", last.Error, f.part)
	}
	if strings.Contains(last.Error, h.wire.secret) || strings.Contains(last.Error, testPassphrase) || len(last.Error) > 1500 {
		t.Errorf("the reason is not for people: %q", last.Error)
	}
}

func (h *faultyHost) exact(t *testing.T, backup string, want []byte) {
	t.Helper()
	v := restore(t, h.a, backup, RestoreRequest{})
	if !bytes.Equal(content(t, h.a, v.ID.String()), want) {
		t.Error("what was restored differs from what was backed up")
	}
	deleteVolume(t, h.a, v.ID.String())
}

// forget deletes backups, the failed ones too.
func (h *faultyHost) forget(t *testing.T, refs ...string) {
	t.Helper()
	for i, ref := range refs {
		if i > 0 && ref == refs[0] {
			continue
		}
		succeed(t, h.a, must(h.a.DeleteBackup(t.Context(), ref, true))(t))
	}
}

func (h *faultyHost) restore(t *testing.T, f netFault) {
	want := content(t, h.a, "v")
	f.begin(h.wire)
	v, op, err := h.a.RestoreBackup(t.Context(), "kept", RestoreRequest{})
	if err != nil {
		h.wire.heal()
		t.Fatal(err)
	}
	last := finish(t, h.a, op)
	faults := h.wire.spoils.Faults()
	h.wire.heal()
	h.hold(t, f, last)
	record := must(h.a.Volume(t.Context(), v.ID.String()))(t)
	switch {
	case last.State == catalog.Succeeded:
		if !bytes.Equal(content(t, h.a, v.ID.String()), want) {
			t.Errorf("the restore succeeded, and differs from what was backed up, after %d faults", faults)
		}
	case record.Status != catalog.Error || record.Reason == "":
		t.Errorf("the restore failed, the volume is in status %s with the reason %q", record.Status, record.Reason)
	}
	deleteVolume(t, h.a, v.ID.String())
	if last.State != catalog.Succeeded {
		h.exact(t, "kept", want)
	}
}

// The server is killed in the middle of an upload and comes back: the backup
// completes.
func (h *faultyHost) killed(t *testing.T) {
	usual := h.a.insistence
	h.a.insistence = insistence{first: 20 * time.Millisecond, most: 200 * time.Millisecond, limit: time.Hour}
	defer func() { h.a.insistence = usual }()
	want := h.fill(t)
	var requests atomic.Int32
	restarted := make(chan error, 1)
	defer func() {
		if err := <-restarted; err != nil {
			t.Error(err)
		}
	}()
	h.wire.spoils.Set(func(r *http.Request) testbed.Fault {
		if !isPut(r) {
			return testbed.Fault{}
		}
		switch requests.Add(1) {
		case 2:
			h.wire.kill()
		case 4:
			go func() { restarted <- h.wire.back() }()
		}
		return testbed.Fault{}
	})
	defer h.wire.heal()
	b := backUp(t, h.a, NewBackup{Volume: "v", Name: "killed"})
	h.exact(t, b.ID.String(), want)
}

// Credentials that are revoked in the middle of a backup end it with advice,
// and with new ones it is made.
func (h *faultyHost) revoked(t *testing.T) {
	want := h.fill(t)
	puts := 0
	h.wire.spoils.Set(func(r *http.Request) testbed.Fault {
		if isPut(r) {
			puts++
		}
		if puts < 2 {
			return testbed.Fault{}
		}
		return testbed.Fault{Status: 401}
	})
	_, op, err := h.a.CreateBackup(t.Context(), NewBackup{Volume: "v", Name: "revoked"})
	if err != nil {
		t.Fatal(err)
	}
	h.hold(t, netFault{must: "fail", part: "varve target set t1 --login"}, finish(t, h.a, op))
	if _, err := h.a.ChangeTarget(t.Context(), "t1", TargetSettings{}, h.wire.env); ReasonOf(err) != Denied {
		t.Errorf("credentials that are refused still: %v", err)
	}
	h.wire.heal()
	must(h.a.ChangeTarget(t.Context(), "t1", TargetSettings{}, h.wire.env))(t)
	b := backUp(t, h.a, NewBackup{Volume: "v", Name: "renewed"})
	h.exact(t, b.ID.String(), want)
}

func deleteVolume(t testing.TB, a *Agent, ref string) {
	t.Helper()
	if err := a.DeleteVolume(t.Context(), ref); err != nil {
		t.Errorf("delete volume %s: %v", ref, err)
	}
}
