package swift_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/swift"
	"varve/e2e/testbed"
)

// With the container server down, objects are stored and read, and only the
// listing fails, for a time.
func TestListingDown(t *testing.T) {
	server := testbed.Swift(t)
	s := create(t, server.Env())
	// The proxy remembers what it knows of the container.
	if err := s.Put(t.Context(), "before", nil); err != nil {
		t.Fatal(err)
	}
	server.Container.Kill()
	defer func() {
		if err := server.Container.Restart(); err != nil {
			t.Fatal(err)
		}
	}()
	if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
		t.Error(err)
	}
	if got, err := object.ReadAll(t.Context(), s, "a", 10); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, err := range s.List(t.Context(), "") {
		if e := new(object.Error); !errors.As(err, &e) || !e.Temporary {
			t.Errorf("List without a container server: got %v, want a temporary error", err)
		}
	}
}

// stub opens a store whose server answers as it likes once it is open. Its
// token has been given out elsewhere, so there is no log-in.
func stub(t *testing.T, answer http.HandlerFunc) object.Store {
	t.Helper()
	opened := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !opened {
			opened = true
			return
		}
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	s, err := swift.Open(t.Context(), object.URL{Scheme: "swift", Container: "c"},
		map[string]string{"OS_AUTH_TOKEN": "hunter2", "OS_STORAGE_URL": server.URL + "/v1/AUTH_x"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A server that no longer knows a token may close the connection in the middle of
// an upload: the store asks, logs in again, and sends it once more.
func TestUploadIsCutOffForItsToken(t *testing.T) {
	var url string
	var mu sync.Mutex
	logins, puts := 0, 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		known := r.Header.Get("X-Auth-Token") == fmt.Sprint("token ", logins)
		switch {
		case r.URL.Path == "/auth/v1.0":
			logins++
			w.Header().Set("X-Auth-Token", fmt.Sprint("token ", logins))
			w.Header().Set("X-Storage-Url", url+"/v1/AUTH_x")
		case r.Method == http.MethodPut && puts == 0:
			puts++
			logins += 100 // its token is forgotten
			panic(http.ErrAbortHandler)
		case !known:
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPut:
			puts++
			w.Header().Set("Etag", r.Header.Get("Etag"))
			w.WriteHeader(http.StatusCreated)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	url = "http://" + server.Listener.Addr().String()
	server.Start()
	t.Cleanup(server.Close)
	s, err := swift.Open(t.Context(), object.URL{Scheme: "swift", Container: "c"}, map[string]string{"ST_AUTH": url + "/auth/v1.0", "ST_USER": "u", "ST_KEY": "k"})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Put(t.Context(), "a", objecttest.Bytes(1, 1<<20))
	mu.Lock()
	defer mu.Unlock()
	if err != nil || puts != 2 || logins != 102 {
		t.Errorf("%v after %d uploads and %d log-ins", err, puts, logins-100)
	}
}

func TestServerBusy(t *testing.T) {
	for _, c := range []struct {
		code      int
		temporary bool
	}{{503, true}, {429, true}, {498, true}, {500, true}, {507, false}, {422, true}, {413, false}, {400, false}, {403, false}} {
		calls := 0
		s := stub(t, func(w http.ResponseWriter, r *http.Request) {
			calls++
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(c.code)
			fmt.Fprintf(w, "<html>%s</html>", strings.Repeat("x", 5000))
		})
		err := s.Put(t.Context(), "a", []byte("x"))
		var e *object.Error
		if !errors.As(err, &e) || e.Temporary != c.temporary || e.RetryAfter != 7*time.Second || calls != 1 {
			t.Errorf("status %d: got %#v after %d requests; want temporary %v, Retry-After 7s, 1 request", c.code, err, calls, c.temporary)
			continue
		}
		if len(err.Error()) > 200 || strings.Contains(err.Error(), "html") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("status %d: the error is not for people: %v", c.code, err)
		}
	}
}

// Whatever a server says about ranges, Get never passes other bytes off as
// those that were asked for.
func TestGetWrongAnswers(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"ignores the range": func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100)) },
		"another range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(206)
			w.Write(make([]byte, 10))
		},
		"no length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-19/100")
			w.WriteHeader(206)
			w.(http.Flusher).Flush()
			w.Write(make([]byte, 10))
		},
	} {
		n, err := stub(t, answer).Get(t.Context(), "a", make([]byte, 10), 10)
		if e := new(object.Error); !errors.As(err, &e) || n != 0 {
			t.Errorf("%s: got %d bytes, %v; want none and an error", name, n, err)
		}
	}
}

// A listing that goes in circles ends.
func TestListInCircles(t *testing.T) {
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `[{"name":"b","bytes":1},{"name":"a","bytes":1}]`)
	})
	count := 0
	var last error
	for _, err := range s.List(t.Context(), "") {
		count++
		last = err
	}
	if count != 2 || last == nil || !strings.Contains(last.Error(), "behind") {
		t.Errorf("List ended after %d with %v", count, last)
	}
}

// A server that does not say that it knows bulk deletes gets none: it would
// take one for a wish to delete the account.
func TestNoBulkDelete(t *testing.T) {
	var requests []string
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.Method+" "+r.URL.Path+"?"+r.URL.RawQuery)
		if r.URL.Path == "/info" {
			fmt.Fprint(w, `{"swift":{"version":"1"}}`)
			return
		}
		w.WriteHeader(204)
	})
	if err := s.Delete(t.Context(), "a", "b", "c", "d"); err != nil {
		t.Fatal(err)
	}
	want := "GET /info? DELETE /v1/AUTH_x/c/a? DELETE /v1/AUTH_x/c/b? DELETE /v1/AUTH_x/c/c? DELETE /v1/AUTH_x/c/d?"
	if got := strings.Join(requests, " "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestHostileServer(t *testing.T) { objecttest.RunHostile(t, stub) }
