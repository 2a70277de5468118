package testbed_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

func TestMain(m *testing.M) {
	if os.Getenv("TESTBED_VICTIM") != "" {
		// Not shared: the victim of TestServersDieWithTest runs one test.
		os.Exit(m.Run())
	}
	testbed.Main(m)
}

func status(t *testing.T, request *http.Request) (int, http.Header) {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header
}

func request(t *testing.T, method, url string, body string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

func TestSwift(t *testing.T) {
	start := time.Now()
	s := testbed.Swift(t)
	t.Logf("Swift was up after %v", time.Since(start).Round(time.Millisecond))
	env := s.Env()
	code, headers := status(t, request(t, "GET", env["ST_AUTH"], "", "X-Auth-User", env["ST_USER"], "X-Auth-Key", env["ST_KEY"]))
	if code != 200 {
		t.Fatalf("log-in answers %d", code)
	}
	token, storage := headers.Get("X-Auth-Token"), headers.Get("X-Storage-Url")
	for _, r := range []struct {
		method, path, body string
		want               int
	}{{"PUT", "/c", "", 201}, {"PUT", "/c/o", "hello", 201}, {"GET", "/c/o", "", 200}, {"GET", "/c/no", "", 404}} {
		if code, _ := status(t, request(t, r.method, storage+r.path, r.body, "X-Auth-Token", token)); code != r.want {
			t.Errorf("%s %s answers %d, want %d", r.method, r.path, code, r.want)
		}
	}
	s.Object.Kill()
	if code, _ := status(t, request(t, "GET", storage+"/c/o", "", "X-Auth-Token", token)); code != 503 {
		t.Errorf("without its object server GET answers %d, want 503", code)
	}
	if err := s.Object.Restart(); err != nil {
		t.Fatal(err)
	}
}

func TestS3(t *testing.T) {
	start := time.Now()
	s := testbed.S3(t)
	t.Logf("S3 was up after %v", time.Since(start).Round(time.Millisecond))
	if code, _ := status(t, request(t, "GET", s.URL+"/", "")); code != 403 {
		t.Errorf("a request without credentials answers %d, want 403", code)
	}
}

// A test that is killed leaves no server behind.
func TestServersDieWithTest(t *testing.T) {
	if os.Getenv("TESTBED_VICTIM") != "" {
		s := testbed.S3(t)
		fmt.Fprintf(os.Stderr, "up %s\n", s.URL)
		<-t.Context().Done() // never: the process is killed
		return
	}
	testbed.S3(t) // builds it, outside of the deadline below
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	victim := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestServersDieWithTest$")
	victim.Env = append(os.Environ(), "TESTBED_VICTIM=1")
	pipe, err := victim.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for !bytes.HasSuffix(said.Bytes(), []byte("\n")) {
		if _, err := io.CopyN(&said, pipe, 1); err != nil {
			t.Fatalf("the victim said %q, then %v", said.Bytes(), err)
		}
	}
	url := strings.TrimSpace(strings.TrimPrefix(said.String(), "up "))
	if code, _ := status(t, request(t, "GET", url+"/", "")); code != 403 {
		t.Fatalf("the victim's server answers %d", code)
	}
	victim.Process.Kill()
	victim.Wait()
	// Its death is a matter of the kernel's: soon, but not at once.
	for {
		if _, err := http.Get(url); err != nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("the server outlives the test that started it")
		}
	}
}
