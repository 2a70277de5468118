package swift_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/swift"
	"varve/e2e/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

var serial atomic.Int64

// container returns a URL that no other test uses.
func container() object.URL {
	n := serial.Add(1)
	u := object.URL{Scheme: "swift", Container: fmt.Sprintf("varve-%d", n)}
	if n%2 == 0 {
		u.Prefix = "some/Prefix_1" // both ways are used
	}
	return u
}

func create(t testing.TB, env map[string]string) object.Store {
	t.Helper()
	s, err := swift.Create(t.Context(), container(), env)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	server := testbed.Swift(t)
	objecttest.Run(t, func(t testing.TB) object.Store { return create(t, server.Env()) })
}

func TestOpen(t *testing.T) {
	env := testbed.Swift(t).Env()
	u := container()
	_, err := swift.Open(t.Context(), u, env)
	if !errors.Is(err, object.ErrNoContainer) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "create it first") {
		t.Errorf("Open of a missing container: got %v", err)
	}
	for range 2 { // Create of one that is there is Open
		s, err := swift.Create(t.Context(), u, env)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	s, err := swift.Open(t.Context(), u, env)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := object.ReadAll(t.Context(), s, "a", 10); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}
