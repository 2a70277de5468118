package agent

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"varve/e2e/testbed"
	"varve/layers"
)

// B18: volumes that hold one file system know of each other; a new UUID ends
// that. Kind and UUID are what blkid says.
func TestTwinFileSystems(t *testing.T) {
	_, a := startWithTarget(t)
	for _, fs := range []struct {
		kind string
		make []string
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}},
		{"xfs", []string{"mkfs.xfs", "-q"}},
	} {
		t.Run(fs.kind, func(t *testing.T) {
			testbed.Require(t, fs.make[0], "blkid")
			image := filepath.Join(t.TempDir(), "image")
			run := func(args ...string) string {
				t.Helper()
				out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %v\n%s", args, err, out)
				}
				return strings.TrimSpace(string(out))
			}
			put := func(volume string) {
				t.Helper()
				run("truncate", "-s", "0", image)
				run("truncate", "-s", "320M", image)
				run(append(fs.make, image)...)
				f, err := os.Open(image)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				head := make([]byte, 64<<10)
				if _, err := io.ReadFull(f, head); err != nil {
					t.Fatal(err)
				}
				d := attach(t, a, volume)
				defer d.detach()
				if _, err := d.Layer.(*layers.Volume).WriteAt(head, 0); err != nil {
					t.Fatal(err)
				}
			}
			one, two, three := fs.kind+"1", fs.kind+"2", fs.kind+"3"
			createVolume(t, a, one, mib)
			createVolume(t, a, three, mib)
			put(one)
			uuid := run("blkid", "-p", "-o", "value", "-s", "UUID", image)
			must(a.CreateVolume(t.Context(), NewVolume{Name: two, Source: one}))(t)
			put(three)
			for name, want := range map[string][]string{one: {two}, two: {one}, three: nil} {
				v := must(a.Volume(t.Context(), name))(t)
				if len(v.FileSystems) != 1 {
					t.Fatalf("%s has %+v, want one", name, v.FileSystems)
				}
				got := v.FileSystems[0]
				if got.Partition != 0 || got.Kind != fs.kind || !slices.Equal(got.Twins, want) || (got.UUID == uuid) != (name != three) {
					t.Errorf("%s: %+v, want %s %s on %q too", name, got, fs.kind, uuid, want)
				}
			}
			put(two)
			if v := must(a.Volume(t.Context(), one))(t); len(v.FileSystems) != 1 || v.FileSystems[0].Twins != nil {
				t.Errorf("after a new UUID of the other: %+v", v.FileSystems)
			}
		})
	}
	createVolume(t, a, "empty", mib)
	if v := must(a.Volume(t.Context(), "empty"))(t); v.FileSystems != nil {
		t.Errorf("an empty volume has %+v", v.FileSystems)
	}
}

// A superblock of btrfs lies further in; and no volume is too short to be
// looked at.
func TestReadFileSystem(t *testing.T) {
	b := make([]byte, 128<<10)
	copy(b[64<<10+64:], "_BHRfS_M")
	copy(b[64<<10+32:], "0123456789abcdef")
	for name, c := range map[string]struct {
		content string
		want    FileSystem
	}{
		"btrfs":         {string(b), FileSystem{Kind: "btrfs", UUID: "30313233-3435-3637-3839-616263646566"}},
		"zeros":         {string(make([]byte, 128<<10)), FileSystem{}},
		"nothing":       {"", FileSystem{}},
		"a short start": {"XFSB", FileSystem{}},
	} {
		if got, err := readFileSystem(strings.NewReader(c.content)); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}
