package swift_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/e2e/testbed"
)

// A Swift that hides what it can do gets one request for each object, also
// through a storm of refusals; one that tells gets one for many.
func TestDeleteInAStorm(t *testing.T) {
	server := testbed.Swift(t)
	for _, bulk := range []bool{true, false} {
		proxy := testbed.NewFaultProxy(t, server.URL)
		env := server.EnvVia(strings.TrimPrefix(proxy.URL, "http://"))
		s := object.Retry(object.Limit(create(t, env), 16), object.Policy{Base: 1})
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("p/%03d", i))
			if err := s.Put(t.Context(), names[i], []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		deletions := 0
		proxy.Set(func(r *http.Request) testbed.Fault {
			switch {
			case r.URL.Path == "/info" && !bulk:
				return testbed.Fault{Status: 404}
			case r.Method == "DELETE":
				if deletions++; deletions%3 != 0 {
					return testbed.Fault{Status: 503}
				}
			}
			return testbed.Fault{}
		})
		if err := s.Delete(t.Context(), names...); err != nil {
			t.Fatal(err)
		}
		proxy.Set(nil)
		// A few more if the server itself was busy.
		if want := map[bool]int{true: 3, false: 60}[bulk]; deletions < want || deletions > want+9 {
			t.Errorf("%d requests with two of three refused, bulk %v; want %d", deletions, bulk, want)
		}
		for _, name := range names {
			if _, err := s.Get(t.Context(), name, nil, 0); err == nil {
				t.Errorf("%s is still there", name)
			}
		}
	}
}
