package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/agent"
)

// A body that does not come whole, or not in the form that its headers said, is
// its client's mistake and not the daemon's.
func TestBrokenBodies(t *testing.T) {
	h := start(t, nil)
	const head = "POST /v1/volumes HTTP/1.1\r\nHost: varve\r\nContent-Type: application/json\r\n"
	for name, request := range map[string]string{
		"a chunk without a length": head + "Transfer-Encoding: chunked\r\n\r\nlength\r\n",
		"chunks that end early":    head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"vol",
		"fewer bytes than said":    head + "Content-Length: 100\r\n\r\n{\"volume\":",
	} {
		c, err := net.Dial("unix", h.client.socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: no answer: %v", name, err)
			continue
		}
		err = readError(answer)
		c.Close()
		var e *Error
		if !errors.As(err, &e) || e.Code != http.StatusBadRequest || e.Reason != agent.Invalid || e.RequestID == "" {
			t.Errorf("%s: %v, want 400", name, err)
		}
	}
}

// An operation with so many findings that its line is long is followed to its
// end all the same.
func TestFollowALongLine(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	note := strings.Repeat("x", 1<<20)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines := json.NewEncoder(w)
		for _, o := range []Operation{{State: "running", Note: &note}, {State: "succeeded", Note: &note, EndedAt: Time{time.Now()}}} {
			if err := lines.Encode(o); err != nil {
				t.Error(err)
			}
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	var states []string
	for o, err := range NewClient(socket).WatchOperation(t.Context(), "1") {
		if err != nil {
			t.Fatal(err)
		}
		if text(o.Note) != note {
			t.Errorf("the note has %d bytes, want %d", len(text(o.Note)), len(note))
		}
		states = append(states, o.State)
	}
	if got := strings.Join(states, " "); got != "running succeeded" {
		t.Errorf("states %q", got)
	}
}
