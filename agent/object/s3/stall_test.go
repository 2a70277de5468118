package s3_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/s3"
	"varve/e2e/testbed"
)

// A read for which a server has one connection stand still is answered over
// another, long before the limit on silence.
func TestReadBehindAStalledConnection(t *testing.T) {
	server := testbed.S3(t)
	proxy := testbed.NewFaultProxy(t, server.URL)
	plain, err := s3.Create(t.Context(), bucket(proxy.URL), server.Env())
	if err != nil {
		t.Fatal(err)
	}
	s := object.Hedge(plain)
	want := objecttest.Bytes(1, 64<<10)
	if err := s.Put(t.Context(), "a", want); err != nil {
		t.Fatal(err)
	}
	var stalled atomic.Bool
	proxy.Set(func(r *http.Request) testbed.Fault {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/a") && !stalled.Swap(true) {
			return testbed.Fault{Stall: true}
		}
		return testbed.Fault{}
	})
	got := make([]byte, len(want)+1)
	n, err := s.Get(t.Context(), "a", got, 0)
	if err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("read %d bytes of %d: %v", n, len(want), err)
	}
	if !stalled.Load() {
		t.Error("no request stood still")
	}
}
