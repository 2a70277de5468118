package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/agent"
	"varve/agent/object"
)

// A harness is a daemon's API on a socket, with a real agent behind it.
type harness struct {
	t      *testing.T
	client *Client
	server *Server
	log    *safeBuffer
	raw    *http.Client
}

func start(t *testing.T, mounts Mounts) *harness {
	t.Helper()
	// t.TempDir is too long for a socket where tests have long names.
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &harness{t: t, log: new(safeBuffer)}
	log := slog.New(slog.NewTextHandler(h.log, nil))
	folder := func(make func(string) (object.Store, error)) func(context.Context, agent.Place) (object.Store, error) {
		return func(_ context.Context, p agent.Place) (object.Store, error) {
			u, err := object.ParseURL(p.URL)
			if err != nil {
				return nil, err
			}
			return make(u.Path)
		}
	}
	a, err := agent.Start(t.Context(), agent.Config{
		State: filepath.Join(dir, "s"), OpenStore: folder(object.Dir), CreateStore: folder(object.CreateDir), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s", SocketName)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h.server = NewServer(Config{
		Agent: a, Mounts: mounts, Version: "test", Log: log,
		VolumeURI: func(volume string) string { return "nbd:" + volume },
	})
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(l) }()
	h.client = NewClient(socket)
	h.raw = h.client.http
	t.Cleanup(func() {
		if err := h.server.Shutdown(context.Background()); err != nil {
			t.Errorf("shut down: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("close the agent: %v", err)
		}
		h.client.Close()
	})
	return h
}

// A safeBuffer is a log that is read while others may write it.
type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// ask sends a request as any HTTP client would.
func (h *harness) ask(method, path, body string) (*http.Response, string) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, "http://varve"+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := h.raw.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return answer, string(b)
}

// Errors have OpenStack's shape and a request id, whoever makes them: the
// agent, the schema or the multiplexer.
func TestErrorShape(t *testing.T) {
	h := start(t, nil)
	tests := []struct {
		method, path, body string
		code               int
		name, message      string
	}{
		{"GET", "/v1/volumes/none", "", 404, "itemNotFound", "none"},
		{"GET", "/v1/backups/none", "", 404, "itemNotFound", "none"},
		{"DELETE", "/v1/backups/none", "", 404, "itemNotFound", "none"},
		{"DELETE", "/v1/backups/none?force=true", "", 404, "itemNotFound", "none"},
		{"POST", "/v1/backups/none/restore", `{"restore":{}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/backups/none/verify", `{"verify":{}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes/none/grow", `{"grow":{"size_bytes":4096}}`, 404, "itemNotFound", "none"},
		{"GET", "/v1/snapshots/none/diff/none", "", 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes/none/maintenance", "", 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes/none/check", `{"check":{"repair":true}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes/none/revert", `{"revert":{"snapshot_id":"s"}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes", `{"volume":{"name":"c","snapshot_id":"none"}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes", `{"volume":{"name":"c","source_volid":"none"}}`, 404, "itemNotFound", "none"},
		{"POST", "/v1/volumes", `{"volume":{"name":"c","source_volid":"none","snapshot_id":"s"}}`, 400, "badRequest", "leave one"},
		{"PUT", "/v1/volumes/none", `{"volume":{"name":"x"}}`, 404, "itemNotFound", "none"},
		{"PUT", "/v1/volumes/none", `{"volume":{"hook_timeout":601}}`, 400, "badRequest", "hook_timeout"},
		{"DELETE", "/v1/volumes/none/maintenance", "", 404, "itemNotFound", "none"},
		{"GET", "/v1/operations/none", "", 404, "itemNotFound", "none"},
		{"GET", "/v1/operations/none?wait=1", "", 404, "itemNotFound", "none"},
		{"GET", "/v1/operations/00000000-0000-7000-8000-000000000001/events", "", 404, "itemNotFound", "00000000-0000-7000-8000-000000000001"},
		{"GET", "/v1/operations/none?wait=61", "", 400, "badRequest", "wait"},
		{"POST", "/v1/attachments", `{"attachment":{"export":"none"}}`, 503, "serviceUnavailable", "cannot attach"},
		{"DELETE", "/v1/attachments/none", "", 404, "itemNotFound", "none"},
		{"DELETE", "/v1/attachments/%2Fdev%2Fnbd7?force=true", "", 400, "badRequest", "/dev/nbd7 is not attached"},
		{"DELETE", "/v1/mounts/none", "", 404, "itemNotFound", "none"},
		{"POST", "/v1/mounts", `{"mount":{"path":"relative"}}`, 400, "badRequest", "absolute"},
		{"POST", "/v1/volumes", `{"volume":{"name":"v","size":1,"size_bytes":4096}}`, 400, "badRequest", "size_bytes"},
		{"POST", "/v1/volumes", `{"volume":{"name":"v","size":9223372036854775807}}`, 400, "badRequest", "out of range"},
		{"POST", "/v1/volumes", `{"volume":{"name":"v","size":-1}}`, 400, "badRequest", "out of range"},
		{"POST", "/v1/volumes", `{"volume":{"name":"v"}}`, 400, "badRequest", "size"},
		{"POST", "/v1/volumes", `{"volume":{"name":3}}`, 400, "badRequest", "body.volume.name"},
		{"POST", "/v1/volumes", `{"volume":`, 400, "badRequest", ""},
		{"POST", "/v1/volumes", ``, 400, "badRequest", "body"},
		{"POST", "/v1/volumes", `{"volume":{"name":"v","colour":"red"}}`, 400, "badRequest", "colour"},
		{"POST", "/v1/backups", `{"backup":{"volume_id":"v","name":"a","display_name":"b"}}`, 400, "badRequest", "display_name"},
		{"POST", "/v1/targets", `{"target":{"name":"t","url":"ftp://x"}}`, 400, "badRequest", "ftp"},
		{"GET", "/v1/nope", "", 404, "itemNotFound", "/v1/nope"},
		{"PUT", "/v1/volumes", "{}", 405, "badMethod", "PUT"},
	}
	id := regexp.MustCompile(`^req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	for _, tt := range tests {
		answer, body := h.ask(tt.method, tt.path, tt.body)
		var got map[string]faultBody
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Errorf("%s %s: %v in %q", tt.method, tt.path, err, body)
			continue
		}
		f, there := got[tt.name]
		if answer.StatusCode != tt.code || !there || len(got) != 1 || f.Code != tt.code || !strings.Contains(f.Message, tt.message) || f.Reason == "" {
			t.Errorf("%s %s %s: %d %s; want %d %s with %q", tt.method, tt.path, tt.body, answer.StatusCode, body, tt.code, tt.name, tt.message)
		}
		if got := answer.Header.Get("X-Openstack-Request-Id"); !id.MatchString(got) {
			t.Errorf("%s %s: request id %q", tt.method, tt.path, got)
		}
	}
}

// Each reason of the agent has a code, and B9's refusal is 400.
func TestEveryReasonHasACode(t *testing.T) {
	for reason, code := range statusOf {
		err := answerFor(&agent.Error{Reason: reason, Message: "m"})
		var f fault
		if !errors.As(err, &f) || f.GetStatus() != code || f.Error() != "m" {
			t.Errorf("%s: %v", reason, err)
		}
	}
	for reason, code := range map[agent.Reason]int{agent.Invalid: 400, agent.Conflict: 400, agent.NotFound: 404, agent.TooLarge: 413, "new": 500} {
		if got := answerFor(&agent.Error{Reason: reason}).(fault).GetStatus(); got != code {
			t.Errorf("%s: %d, want %d", reason, got, code)
		}
	}
	if err := answerFor(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// Every answer carries a request id, and the log has the same one.
func TestRequestID(t *testing.T) {
	h := start(t, nil)
	answer, _ := h.ask("GET", "/v1/volumes", "")
	other, _ := h.ask("POST", "/v1/volumes", "{}")
	a, b := answer.Header.Get(requestIDHeader), other.Header.Get(requestIDHeader)
	if a == "" || b == "" || a == b || answer.StatusCode != 200 {
		t.Errorf("request ids %q and %q, code %d", a, b, answer.StatusCode)
	}
	if !strings.Contains(h.log.String(), b) {
		t.Errorf("the log does not have %s:\n%s", b, h.log)
	}
}

// A9: the request has the fields of Cinder's, under both of their words.
func TestNewBackup(t *testing.T) {
	full := agent.NewBackup{Volume: "v", Target: "c", Name: "n", Description: "d", Snapshot: "s", Force: true, Incremental: true,
		Quiesce: agent.Quiesce{Mounts: []string{"/m"}, NoHooks: true, FreezeLimit: 1500 * time.Millisecond}}
	for _, body := range []string{
		`{"volume_id":"v","container":"c","name":"n","description":"d","snapshot_id":"s","force":true,"incremental":true,"freeze":["/m"],"freeze_limit":1.5,"no_hooks":true}`,
		`{"volume_id":"v","container":"c","display_name":"n","display_description":"d","snapshot_id":"s","force":true,"incremental":true,"freeze":["/m"],"freeze_limit":1.5,"no_hooks":true}`,
		`{"volume_id":"v","container":"c","name":"n","display_name":"n","description":"d","snapshot_id":"s","force":true,"incremental":true,"freeze":["/m"],"freeze_limit":1.5,"no_hooks":true}`,
	} {
		var n NewBackup
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			t.Fatal(err)
		}
		if got, err := newBackup(n); err != nil || !reflect.DeepEqual(got, full) {
			t.Errorf("%s: %+v, %v; want %+v", body, got, err, full)
		}
	}
	h := start(t, nil)
	_, doc := h.ask("GET", "/openapi.json", "")
	var d struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal([]byte(doc), &d); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"name", "description", "volume_id", "container", "force", "incremental", "snapshot_id", "display_name", "display_description", "freeze", "no_freeze"} {
		if d.Components.Schemas["NewBackup"].Properties[field] == nil {
			t.Errorf("the OpenAPI document does not describe %s of a new backup", field)
		}
	}
}

// The document at /openapi.json names every path that the client uses.
func TestOpenAPI(t *testing.T) {
	h := start(t, nil)
	answer, doc := h.ask("GET", "/openapi.json", "")
	var d struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(doc), &d); err != nil || answer.StatusCode != 200 || !strings.HasPrefix(d.OpenAPI, "3.1") {
		t.Fatalf("%d, %v, version %q", answer.StatusCode, err, d.OpenAPI)
	}
	want := []string{
		"/v1/attachments", "/v1/attachments/{attachment}", "/v1/backups", "/v1/backups/expire", "/v1/backups/{backup}", "/v1/backups/{backup}/cost", "/v1/backups/{backup}/diff/{other}", "/v1/backups/{backup}/restore", "/v1/backups/{backup}/verify",
		"/v1/mounts", "/v1/mounts/{mount}", "/v1/operations", "/v1/operations/{operation}", "/v1/operations/{operation}/events", "/v1/quota",
		"/v1/snapshots", "/v1/snapshots/{snapshot}", "/v1/snapshots/{snapshot}/diff/{other}", "/v1/status", "/v1/targets", "/v1/targets/{target}", "/v1/targets/{target}/prune", "/v1/targets/{target}/sync", "/v1/targets/{target}/verify",
		"/v1/targets/{target}/usage", "/v1/targets/{target}/description", "/v1/targets/{target}/keys", "/v1/targets/{target}/keys/{slot}", "/v1/targets/{target}/keys/{slot}/rotate",
		"/v1/targets/{target}/volumes/{volume}/rotate", "/v1/backups/{backup}/action", "/v1/snapshots/{snapshot}/action", "/v1/volumes/{volume}/action",
		"/v1/volumes", "/v1/volumes/{volume}", "/v1/volumes/{volume}/adopt", "/v1/volumes/{volume}/grow", "/v1/volumes/{volume}/import", "/v1/volumes/{volume}/maintenance", "/v1/volumes/{volume}/revert", "/v1/volumes/{volume}/check",
	}
	for _, p := range want {
		if d.Paths[p] == nil {
			t.Errorf("%s is not described", p)
		}
	}
	if len(d.Paths) != len(want) {
		t.Errorf("%d paths are described, want %d", len(d.Paths), len(want))
	}
}

// What a client may have sent as a passphrase never comes back, not even when
// it was sent in the wrong place.
func TestSecretsDoNotComeBack(t *testing.T) {
	h := start(t, nil)
	for _, body := range []string{
		`{"target":{"name":"t","url":"file:///nowhere/at/all","passphrase":["hunter2"]}}`,
		`{"target":{"name":"t","url":"file:///nowhere/at/all","passphrase":"hunter2","credentials":{"OS_PASSWORD":"hunter2"}}}`,
		`{"target":{"name":"t","url":"s3://user:hunter2@bucket/x","passphrase":"hunter2"}}`,
		`{"target":{"name":"","url":"file:///nowhere/at/all","passphrase":"hunter2"}}`,
	} {
		answer, text := h.ask("POST", "/v1/targets", body)
		if answer.StatusCode < 400 || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %d %s", body, answer.StatusCode, text)
		}
	}
	if strings.Contains(h.log.String(), "hunter2") {
		t.Errorf("a secret is in the log:\n%s", h.log)
	}
}

func TestClientErrors(t *testing.T) {
	h := start(t, nil)
	_, err := h.client.Volume(t.Context(), "a/b ?#%2f")
	var e *Error
	if !errors.As(err, &e) || e.Code != 404 || e.Reason != agent.NotFound || !strings.HasPrefix(e.RequestID, "req-") ||
		!strings.Contains(e.Message, "a/b ?#%2f") {
		t.Errorf("unknown volume: %#v", err)
	}
	if want := e.Message + " (HTTP 404) (Request-ID: " + e.RequestID + ")"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	for _, name := range []string{"", ".", ".."} {
		if _, err := h.client.Backup(t.Context(), name); !errors.As(err, &e) || e.Reason != agent.NotFound {
			t.Errorf("backup %q: %v", name, err)
		}
	}
	for _, err := range h.client.WatchOperation(t.Context(), "none") {
		if !errors.As(err, &e) || e.Code != 404 {
			t.Errorf("watch an unknown operation: %v", err)
		}
	}
}

// No daemon: the error names the socket and says what to type.
func TestDaemonAway(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatalf("TMPDIR may be too deep for a socket: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, socket := range []string{filepath.Join(dir, "none.sock"), stale, filepath.Join(stale, "below")} {
		_, err := NewClient(socket).Volumes(t.Context(), Page{})
		var away *DaemonAwayError
		if !errors.As(err, &away) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "varve serve --state") {
			t.Errorf("%s: %v", socket, err)
		}
	}
	long := "/" + strings.Repeat("x", MaxSocketPath)
	_, err = NewClient(long).Volumes(t.Context(), Page{})
	if err == nil || !strings.Contains(err.Error(), "108 bytes") || !strings.Contains(err.Error(), "--state") {
		t.Errorf("a path of 108 bytes: %v", err)
	}
}

// A handler that panics is a 500 with a line in the log, not the daemon's end.
func TestPanic(t *testing.T) {
	h := start(t, panickingMounts{})
	answer, body := h.ask("POST", "/v1/mounts", `{"mount":{"path":"/x"}}`)
	if answer.StatusCode != 500 || !strings.Contains(body, "computeFault") || strings.Contains(body, "boom") {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
	if !strings.Contains(h.log.String(), "boom") {
		t.Errorf("the log does not tell:\n%s", h.log)
	}
	if _, err := h.client.Volumes(t.Context(), Page{}); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

type panickingMounts struct{}

func (panickingMounts) Mount(context.Context, string) (Mount, error) { panic("boom") }
func (panickingMounts) List() []Mount                                { return nil }
func (panickingMounts) Unmount(context.Context, string) error        { return fs.ErrNotExist }

// Times travel as OpenStack writes them; no time is null.
func TestTime(t *testing.T) {
	var m Mount
	if err := json.Unmarshal([]byte(`{"created_at":"2026-02-26T12:20:41.123456"}`), &m); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(m)
	if err != nil || !strings.Contains(string(b), `"created_at":"2026-02-26T12:20:41.123456"`) {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := json.Marshal(Time{}); err != nil || string(b) != "null" {
		t.Errorf("no time: %s, %v", b, err)
	}
	for _, bad := range []string{`"x"`, `3`, `"2026-02-26T12:20:41Z"`} {
		if err := json.Unmarshal([]byte(bad), &m.CreatedAt); err == nil {
			t.Errorf("%s is taken for a time", bad)
		}
	}
}
