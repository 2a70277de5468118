package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeDaemon answers a backup's deletion with an operation that has these
// events. Then it ends the stream; or, if interrupt is set, calls that and holds
// the stream open until the caller leaves.
func fakeDaemon(t *testing.T, events []string, interrupt func()) (state string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("DELETE /v1/backups/{backup}", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, `{"operation":{"id":"op-1","kind":"backup delete","state":"running"}}`)
	})
	mux.HandleFunc("GET /v1/operations/op-1/events", func(w http.ResponseWriter, r *http.Request) {
		for _, e := range events {
			fmt.Fprintln(w, e)
			http.NewResponseController(w).Flush()
		}
		if interrupt != nil {
			interrupt()
			<-r.Context().Done()
		}
	})
	return serveFake(t, mux)
}

// serveFake serves what stands for a daemon in a state folder.
func serveFake(t *testing.T, handler http.Handler) (state string) {
	t.Helper()
	state, err := os.MkdirTemp("", "vo") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	l, err := net.Listen("unix", filepath.Join(state, "varve.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return state
}

const (
	runningEvent = `{"id":"op-1","kind":"backup delete","state":"running","done_bytes":1,"total_bytes":2,"ended_at":null}`
	endedEvent   = `{"id":"op-1","kind":"backup delete","state":"%s","error":%s,"note":%s,"ended_at":"2026-02-26T12:20:41.000000"}`
)

// C1: a command follows its operation to the end, and says what became of it.
func TestFollow(t *testing.T) {
	tests := []struct {
		name   string
		events []string
		flags  string
		code   int
		stderr string
	}{
		{"succeeded", []string{runningEvent, fmt.Sprintf(endedEvent, "succeeded", "null", "null")}, "", exitOK, ""},
		{"note", []string{fmt.Sprintf(endedEvent, "succeeded", "null", `"look\u001b[2J"`)}, "", exitOK, `backup delete: look\x1b[2J` + "\n"},
		{"failed", []string{runningEvent, fmt.Sprintf(endedEvent, "failed", `"the disk is gone"`, "null")}, "", exitFailed,
			"Failed to delete backup with name or ID 'b': backup delete: the disk is gone\n1 of 1 backups failed to delete.\n"},
		{"canceled", []string{fmt.Sprintf(endedEvent, "canceled", "null", "null")}, "", exitFailed,
			"Failed to delete backup with name or ID 'b': backup delete: canceled\n1 of 1 backups failed to delete.\n"},
		{"daemon gone", []string{runningEvent}, "", exitFailed, "the daemon stopped before its end"},
		{"nonsense", []string{"nonsense"}, "", exitFailed, "answer of the daemon"},
		{"no wait", nil, "--no-wait", exitOK, "goes on as operation op-1; follow it with: varve operation show op-1 --wait\n"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		p := &program{stdout: &stdout, stderr: &stderr}
		line := "varve --state " + fakeDaemon(t, tt.events, nil) + " backup delete b " + tt.flags
		code := p.run(t.Context(), strings.Fields(line))
		if code != tt.code || !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%s: exit code %d, stderr %q; want %d, %q", tt.name, code, stderr.String(), tt.code, tt.stderr)
		}
	}
}

// C1: Ctrl-C leaves the operation running and says how to follow or cancel it.
func TestDetach(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	state := fakeDaemon(t, []string{runningEvent}, interrupt)
	var stderr bytes.Buffer
	p := &program{stdout: io.Discard, stderr: &stderr}
	code := p.run(ctx, strings.Fields("varve --state "+state+" backup delete a b"))
	want := "varve: no longer watching; backup delete goes on in the daemon as operation op-1\n" +
		"  follow it: varve operation show op-1 --wait\n  cancel it: varve operation cancel op-1\n"
	if code != exitDetached || stderr.String() != want {
		t.Errorf("exit code %d, stderr %q; want %d, %q", code, stderr.String(), exitDetached, want)
	}
}

// C1: so does Ctrl-C before the daemon has answered.
func TestDetachBeforeTheAnswer(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	state := serveFake(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		interrupt()
		<-r.Context().Done()
	}))
	for _, tt := range []struct{ line, stderr string }{
		{"backup delete b", "varve: interrupted before the daemon answered: what was asked for may go on there, and \"varve operation list\" shows whether it does\n"},
		{"backup list", "varve: interrupted\n"},
	} {
		var stderr bytes.Buffer
		p := &program{stdout: io.Discard, stderr: &stderr}
		if code := p.run(ctx, strings.Fields("varve --state "+state+" "+tt.line)); code != exitDetached || stderr.String() != tt.stderr {
			t.Errorf("%s: exit code %d, stderr %q; want %d, %q", tt.line, code, stderr.String(), exitDetached, tt.stderr)
		}
	}
}

// A command that follows an operation tells what that waits for, once.
func TestFollowTellsWhatIsWaitedFor(t *testing.T) {
	waiting := `{"id":"op-1","kind":"backup delete","state":"running","waits_for":"target usb is away","ended_at":null}`
	state := fakeDaemon(t, []string{runningEvent, waiting, waiting, fmt.Sprintf(endedEvent, "succeeded", "null", "null")}, nil)
	var stderr bytes.Buffer
	p := &program{stdout: io.Discard, stderr: &stderr}
	code := p.run(t.Context(), strings.Fields("varve --state "+state+" backup delete b"))
	if want := "backup delete waits: target usb is away\n"; code != exitOK || stderr.String() != want {
		t.Errorf("exit code %d, stderr %q; want %q", code, stderr.String(), want)
	}
}
