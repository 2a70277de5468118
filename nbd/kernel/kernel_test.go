package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestCommandOnTheWire: the attributes are those of the kernel's header.
func TestCommandOnTheWire(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	got, err := command{
		number: cmdConnect, index: 3, backend: "me", size: 1 << 40, block: 512, flags: 0x65,
		times: &times{request: 10, dead: 600}, sockets: []*os.File{null},
	}.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Join([][]byte{
		{8, 0, 1, 0, 3, 0, 0, 0},                     // INDEX
		{12, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0},        // SIZE_BYTES
		{12, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 0},        // BLOCK_SIZE_BYTES
		{12, 0, 5, 0, 0x65, 0, 0, 0, 0, 0, 0, 0},     // SERVER_FLAGS
		{12, 0, 4, 0, 10, 0, 0, 0, 0, 0, 0, 0},       // TIMEOUT
		{12, 0, 8, 0, 0x58, 2, 0, 0, 0, 0, 0, 0},     // DEAD_CONN_TIMEOUT
		{7, 0, 10, 0, 'm', 'e', 0, 0},                // BACKEND_IDENTIFIER
		{16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0}, // SOCKETS, ITEM, FD
		{byte(null.Fd()), 0, 0, 0},                   //
	}, nil)
	if !bytes.Equal(got, want) {
		t.Errorf("attributes\n% x, want\n% x", got, want)
	}
	if got, _ := (command{number: cmdReconfigure, index: -1}).encode(); len(got) != 0 {
		t.Errorf("a command about any device has attributes % x", got)
	}
}

// TestAnswers: whatever the kernel answers is an index or an error.
func TestAnswers(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, 7)
	good, _ := e.Encode()
	for _, c := range []struct {
		name string
		data []byte
		want int // below 0: an error
	}{
		{"an index", good, 7},
		{"nothing", nil, -1},
		{"another attribute", []byte{8, 0, 2, 0, 1, 0, 0, 0}, -1},
		{"a cut attribute", good[:5], -1},
	} {
		got, err := indexOf([]genetlink.Message{{Data: c.data}})
		if c.want < 0 && err == nil || c.want >= 0 && (err != nil || got != c.want) {
			t.Errorf("%s: %d, %v", c.name, got, err)
		}
	}
}

// fakeSys makes files like those of /sys/block for a test.
func fakeSys(t *testing.T, files map[string]string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	was := sysBlock
	sysBlock = root
	t.Cleanup(func() { sysBlock = was })
}

func TestFind(t *testing.T) {
	fakeSys(t, map[string]string{
		"nbd0/size":    "0\n",
		"nbd1/backend": "other\n", "nbd1/pid": "12\n",
		"nbd2/backend": "mine\n", "nbd2/pid": "0\n", // disconnected, but still mounted
		"nbd12/backend": "mine\n", "nbd12/pid": "12\n", "nbd12/size": "2048\n", "nbd12/dev": "43:384\n",
		"nbd12/nbd12p1/dev": "43:385\n", "nbd12/nbd12p1/holders/dm-0": "",
		"nbdx/backend": "mine\n",
	})
	if index, found := find("mine"); !found || index != 12 {
		t.Errorf("found %d, %v; want 12", index, found)
	}
	if _, found := find("nobody's"); found {
		t.Error("found a device of nobody")
	}
	if size, err := sizeOf(12); err != nil || size != 1<<20 {
		t.Errorf("size %d, %v", size, err)
	}
	if got, want := numbers(12), map[string]string{"43:384": "/dev/nbd12", "43:385": "/dev/nbd12p1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("numbers %v, want %v", got, want)
	}
	if got := holders(12); len(got) != 1 || got[0] != "/dev/dm-0 is made of it" {
		t.Errorf("holders %q", got)
	}
}

// TestUsersAreFound looks for what this machine has surely mounted and open.
func TestUsersAreFound(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	number := ""
	eachLine("/proc/self/mountinfo", func(fields []string) {
		if fields[4] == "/" {
			number = fields[2]
		}
	})
	if got := mounts(map[string]string{number: "/dev/x"}); len(got) == 0 {
		t.Errorf("the root folder's mount %s was not found", number)
	}
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("unescape: %s", got)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	if err := error(&InUseError{"/dev/nbd0", []string{"a", "b"}}); !errors.Is(err, unix.EBUSY) ||
		err.Error() != "/dev/nbd0 is in use: a; b. Unmount and close it first" {
		t.Error(err)
	}
	if err := commandError(unix.EPERM); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}
