package nbd_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/client"
	goserver "github.com/pojntfx/go-nbd/pkg/server"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestBackendsAreDevices: go-nbd's own backends keep the contract behind the
// adapter, the memory one too, which panics at its end by itself.
func TestBackendsAreDevices(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		nbdtest.Run(t, func(t *testing.T) nbd.Device {
			return device(t, backend.NewMemoryBackend(make([]byte, nbdtest.Size)))
		})
	})
	t.Run("file", func(t *testing.T) {
		nbdtest.Run(t, func(t *testing.T) nbd.Device {
			f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if err := f.Truncate(nbdtest.Size); err != nil {
				t.Fatal(err)
			}
			return device(t, backend.NewFileBackend(f))
		})
	})
	t.Run("there and back", func(t *testing.T) {
		nbdtest.Run(t, func(t *testing.T) nbd.Device {
			return device(t, nbd.AsBackend(nbdtest.NewMemory(nbdtest.Size)))
		})
	})
}

func device(t *testing.T, b backend.Backend) nbd.Device {
	t.Helper()
	d, err := nbd.FromBackend(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

type sizeless struct{ backend.Backend }

func (sizeless) Size() (int64, error) { return 0, errors.New("no size") }

func TestBackendWithoutSize(t *testing.T) {
	if _, err := nbd.FromBackend(sizeless{}); err == nil {
		t.Error("FromBackend took a backend without a size")
	}
}

// TestGoNBDServesADevice: go-nbd's server on our device, our raw client.
func TestGoNBDServesADevice(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	flushed := false
	m.Faults.Flush = func() error { flushed = true; return nil }
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- goserver.Handle(theirs, []*goserver.Export{{Name: "x", Backend: nbd.AsBackend(m)}}, nil)
	}()
	c := &rawClient{TB: t, Conn: ours}
	c.greet(1)
	if size, _ := c.goTo("x"); size != 1<<20 {
		t.Errorf("size %d", size)
	}
	c.expect(0, cmdWrite, 0, 4096, 512, pattern(1, 512)...)
	if !bytes.Equal(c.get(4096, 512), pattern(1, 512)) {
		t.Error("read back other bytes")
	}
	c.send(requestBytes(cmdDisc, 0, 0, 0, 0))
	if err := <-ended; err != nil || !flushed {
		t.Errorf("Handle: %v, flushed: %v", err, flushed)
	}
}

// TestGoNBDLists: go-nbd's client reads one reply to LIST, which is our first
// export.
func TestGoNBDLists(t *testing.T) {
	s := newShelf(nbd.Export{Name: "only", Device: nbdtest.NewMemory(4096)})
	conn, err := net.Dial("unix", serve(t, &nbd.Server{List: s.List, Open: s.Open}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := client.List(conn); err != nil || !slices.Equal(got, []string{"only"}) {
		t.Errorf("List: %q, %v", got, err)
	}
}
