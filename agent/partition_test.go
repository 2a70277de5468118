package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// B18: file systems are found in the partitions that sfdisk makes, of GPT and of
// MBR with logical ones, as blkid finds them.
func TestFileSystemsInPartitions(t *testing.T) {
	testbed.Require(t, "sfdisk", "mkfs.ext4", "mkfs.xfs", "blkid")
	const size = 1 << 30
	dir := t.TempDir()
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	xfs := filepath.Join(dir, "xfs")
	run("", "truncate", "-s", "320M", xfs)
	run("", "mkfs.xfs", "-q", xfs)
	xfsHead, err := os.ReadFile(xfs)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		script    string
		ext4, xfs partition
	}{
		"gpt": {"label: gpt\nsize=8MiB\nsize=64MiB\nstart=100MiB,size=320MiB\n", partition{2, 9 << 20, 64 << 20}, partition{3, 100 << 20, 320 << 20}},
		"mbr": {"label: dos\nsize=8MiB\n, , E\nsize=64MiB\nstart=100MiB, size=320MiB\n", partition{5, 10 << 20, 64 << 20}, partition{6, 100 << 20, 320 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			image := filepath.Join(dir, name)
			run("", "truncate", "-s", fmt.Sprint(size), image)
			run(c.script, "sfdisk", "-q", image)
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			found, err := readPartitions(f)
			if err != nil || !slices.Contains(found, c.ext4) || !slices.Contains(found, c.xfs) {
				t.Fatalf("%v, %v, want %v and %v; sfdisk: %s", found, err, c.ext4, c.xfs, run("", "sfdisk", "-d", image))
			}
			run("", "mkfs.ext4", "-q", "-E", fmt.Sprint("offset=", c.ext4.at), image, "32M")
			if _, err := f.WriteAt(xfsHead[:64<<10], c.xfs.at); err != nil {
				t.Fatal(err)
			}
			var want []FileSystem
			for kind, p := range map[string]partition{"ext4": c.ext4, "xfs": c.xfs} {
				uuid := run("", "blkid", "-p", "-O", fmt.Sprint(p.at), "-o", "value", "-s", "UUID", image)
				want = append(want, FileSystem{Partition: p.number, Kind: kind, UUID: uuid})
			}
			slices.SortFunc(want, func(x, y FileSystem) int { return x.Partition - y.Partition })
			if got, err := readFileSystems(f, size); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		})
	}
}

// A GPT with sectors of 4096 bytes; tables that lie; a chain of logical
// partitions that bites its tail.
func TestReadPartitions(t *testing.T) {
	gpt := func(sector int, first, last uint64) []byte {
		b := make([]byte, 4*sector)
		copy(b[sector:], "EFI PART")
		binary.LittleEndian.PutUint64(b[sector+72:], 2)
		binary.LittleEndian.PutUint32(b[sector+80:], 4)
		binary.LittleEndian.PutUint32(b[sector+84:], 128)
		entry := b[2*sector+128:] // the second; the first is unused
		entry[0] = 1
		binary.LittleEndian.PutUint64(entry[32:], first)
		binary.LittleEndian.PutUint64(entry[40:], last)
		return b
	}
	mbr := func(entries ...mbrEntry) []byte {
		b := make([]byte, 512)
		b[510], b[511] = 0x55, 0xaa
		for i, e := range entries {
			b[446+16*i+4] = e.kind
			binary.LittleEndian.PutUint32(b[446+16*i+8:], uint32(e.at))
			binary.LittleEndian.PutUint32(b[446+16*i+12:], uint32(e.length))
		}
		return b
	}
	lying := gpt(512, 6, 9)
	binary.LittleEndian.PutUint32(lying[512+84:], 1<<31)
	boot := mbr(mbrEntry{0x83, 1, 1})
	boot[446] = 'x'
	for name, c := range map[string]struct {
		content []byte
		want    []partition
	}{
		"4096 bytes":     {gpt(4096, 6, 9), []partition{{2, 6 * 4096, 4 * 4096}}},
		"ends first":     {gpt(512, 9, 6), nil},
		"far":            {gpt(512, 1<<63, 1<<63), nil},
		"large entries":  {lying, nil},
		"cut":            {gpt(512, 6, 9)[:1024], nil},
		"primary":        {mbr(mbrEntry{}, mbrEntry{0x83, 8, 2}), []partition{{2, 8 * 512, 2 * 512}}},
		"a boot sector":  {boot, nil},
		"GPT's guardian": {mbr(mbrEntry{0xee, 1, 1 << 20}), nil},
		"nothing":        {nil, nil},
	} {
		got, err := readPartitions(bytes.NewReader(c.content))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
	circle := slices.Concat(mbr(mbrEntry{0x05, 1, 9}), mbr(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 0, 9}))
	if got, err := readPartitions(bytes.NewReader(circle)); err != nil || len(got) != maxPartitions-5 {
		t.Errorf("a circle of logical partitions: %d of them, %v, want %d", len(got), err, maxPartitions-5)
	}
}

// FuzzReadPartitions: whatever a volume holds, the search ends, and names
// partitions of its own once each.
func FuzzReadPartitions(f *testing.F) {
	f.Add(make([]byte, 2048))
	f.Fuzz(func(t *testing.T, content []byte) {
		found, err := readPartitions(bytes.NewReader(content))
		if err != nil || len(found) > maxPartitions {
			t.Fatalf("%d partitions, %v", len(found), err)
		}
		seen := map[int]bool{}
		for _, p := range found {
			if seen[p.number] || p.number < 1 || p.at < 0 || p.length <= 0 {
				t.Errorf("%+v", p)
			}
			seen[p.number] = true
			readFileSystem(io.NewSectionReader(bytes.NewReader(content), p.at, p.length))
		}
	})
}
