package s3_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/s3"
	"varve/e2e/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

var serial atomic.Int64

// bucket returns a URL that no other test uses.
func bucket(endpoint string) object.URL {
	n := serial.Add(1)
	u := object.URL{Scheme: "s3", Container: fmt.Sprintf("varve-%d", n), Endpoint: endpoint}
	if n%2 == 0 {
		u.Prefix = "some/Prefix_1" // both ways are used
	}
	return u
}

func create(t testing.TB, endpoint string, env map[string]string) object.Store {
	t.Helper()
	s, err := s3.Create(t.Context(), bucket(endpoint), env)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fake starts an S3 in this process that believes every signature.
func fake(t testing.TB) (endpoint string, env map[string]string) {
	server := httptest.NewServer(gofakes3.New(s3mem.New()).Server())
	t.Cleanup(server.Close)
	return server.URL, map[string]string{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2"}
}

func TestStoreFake(t *testing.T) {
	objecttest.Run(t, func(t testing.TB) object.Store {
		endpoint, env := fake(t)
		return create(t, endpoint, env)
	})
}

func TestStoreVersity(t *testing.T) {
	server := testbed.S3(t)
	objecttest.Run(t, func(t testing.TB) object.Store { return create(t, server.URL, server.Env()) })
}

func TestStoreSwift(t *testing.T) {
	server := testbed.Swift(t).S3()
	objecttest.Run(t, func(t testing.TB) object.Store { return create(t, server.URL, server.Env()) })
}

func TestOpen(t *testing.T) {
	server := testbed.S3(t)
	u := bucket(server.URL)
	_, err := s3.Open(t.Context(), u, server.Env())
	if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "create it first") {
		t.Errorf("Open of a missing bucket: got %v", err)
	}
	for range 2 { // Create of one that is there is Open
		s, err := s3.Create(t.Context(), u, server.Env())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	s, err := s3.Open(t.Context(), u, server.Env())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := object.ReadAll(t.Context(), s, "a", 10); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}
