package s3_test

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/e2e/testbed"
)

// isBulk says whether a request deletes several objects.
func isBulk(r *http.Request) bool { return r.Method == "POST" && r.URL.Query().Has("delete") }

// A server that deletes one object at a time, as Google's does, is asked once
// whether it takes more, and does all else.
func TestStoreWithoutBulk(t *testing.T) {
	server := testbed.S3(t)
	for _, c := range []testbed.Fault{
		{Status: 501},
		{Status: 400, Body: "<Error><Code>NotImplemented</Code><Message>A header or query you provided requested a function that is not implemented.</Message></Error>"},
	} {
		proxy := testbed.NewFaultProxy(t, server.URL)
		proxy.Set(func(r *http.Request) testbed.Fault {
			if isBulk(r) {
				return c
			}
			return testbed.Fault{}
		})
		s := object.Limit(create(t, proxy.URL, server.Env()), 16)
		names := put(t, s, 30)
		for part := range slices.Chunk(names[:28], 14) {
			if err := s.Delete(t.Context(), part...); err != nil {
				t.Fatal(err)
			}
		}
		if left := listed(t, s); !slices.Equal(left, names[28:]) {
			t.Errorf("left: %q", left)
		}
		if n := proxy.Faults(); n != 1 {
			t.Errorf("%d requests for many objects after %d %s, want 1", n, c.Status, c.Body)
		}
	}
}

// Deleting goes on through a storm of refusals, with what is left: in bulk and
// one by one.
func TestDeleteInAStorm(t *testing.T) {
	server := testbed.S3(t)
	for _, bulk := range []bool{true, false} {
		proxy := testbed.NewFaultProxy(t, server.URL)
		s := object.Retry(object.Limit(create(t, proxy.URL, server.Env()), 16), object.Policy{Base: 1})
		names := put(t, s, 60)
		deletions := 0
		proxy.Set(func(r *http.Request) testbed.Fault {
			switch {
			case isBulk(r) && !bulk:
				return testbed.Fault{Status: 501}
			case isBulk(r), r.Method == "DELETE":
				if deletions++; deletions%3 != 0 {
					return testbed.Fault{Status: 503, Body: "<Error><Code>SlowDown</Code></Error>"}
				}
			}
			return testbed.Fault{}
		})
		if err := s.Delete(t.Context(), names...); err != nil {
			t.Fatal(err)
		}
		proxy.Set(nil)
		if left := listed(t, s); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		// A few more if the server itself was busy.
		if want := map[bool]int{true: 3, false: 180}[bulk]; deletions < want || deletions > want+9 {
			t.Errorf("%d requests with two of three refused, bulk %v; want %d", deletions, bulk, want)
		}
	}
}

// A server may delete some of many and refuse the others: those alone are asked
// for again, and fewer requests let through.
func TestDeletePartly(t *testing.T) {
	var mu sync.Mutex
	var asked []int
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var request struct{ Object []struct{ Key string } }
		text, err := io.ReadAll(r.Body)
		if err = errors.Join(err, xml.Unmarshal(text, &request)); err != nil {
			t.Error(err)
		}
		asked = append(asked, len(request.Object))
		fmt.Fprint(w, "<DeleteResult>")
		for i, o := range request.Object {
			if code := []string{"", "NoSuchKey", "SlowDown", "InternalError"}[i%4]; code != "" && len(request.Object) > 1 {
				fmt.Fprintf(w, "<Error><Key>%s</Key><Code>%s</Code></Error>", o.Key, code)
			}
		}
		fmt.Fprint(w, "</DeleteResult>")
	})
	var names []string
	for i := range 1100 {
		names = append(names, fmt.Sprintf("p/%d", i))
	}
	gate := object.NewGate(16)
	if err := object.Retry(gate.Store(s), object.Policy{Base: 1}).Delete(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	if want := "[1000 600 300 150 74 36 18 8 4 2]"; fmt.Sprint(asked) != want {
		t.Errorf("asked for %v, want %s", asked, want)
	}
	if gate.Places() == 16 {
		t.Error("a server that says SlowDown of some objects gets as many requests as before")
	}
}

func put(t *testing.T, s object.Store, n int) (names []string) {
	t.Helper()
	for i := range n {
		names = append(names, fmt.Sprintf("p/%03d", i))
		if err := s.Put(t.Context(), names[i], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

func listed(t *testing.T, s object.Store) (names []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}
