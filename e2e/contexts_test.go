package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// TestContexts: what changed since a snapshot, and how deep data lies, as the
// tools for QEMU's backups ask for it.
func TestContexts(t *testing.T) {
	testbed.Require(t, "nbdinfo", "qemu-img", "qemu-io")
	d := startDaemon(t)
	d.varve("volume", "create", "vol", "--size", "16M")
	write := func(at string) {
		t.Helper()
		client(t, "qemu-io", "-f", "raw", d.uri("vol"), "-c", "write -P 7 "+at, "-c", "flush")
	}
	write("0 1M")
	d.varve("snapshot", "create", "vol", "--name", "one")
	write("4M 64k")
	d.varve("snapshot", "create", "vol", "--name", "two")
	write("8M 64k")

	list := client(t, "nbdinfo", "--json", d.uri("vol"))
	for _, want := range []string{"varve:depth", "qemu:allocation-depth", "varve:dirty:one", "qemu:dirty-bitmap:two"} {
		if !strings.Contains(list, want) {
			t.Errorf("nbdinfo does not list %q:\n%s", want, list)
		}
	}
	const K, M = 1 << 10, 1 << 20
	for _, c := range []struct {
		export, context string
		want            [][3]int64 // offset, length, type
	}{
		{"vol", "qemu:dirty-bitmap:one", [][3]int64{{0, 4 * M, 0}, {4 * M, 64 * K, 1}, {4*M + 64*K, 4*M - 64*K, 0}, {8 * M, 64 * K, 1}, {8*M + 64*K, 8*M - 64*K, 0}}},
		{"vol", "varve:dirty:two", [][3]int64{{0, 8 * M, 0}, {8 * M, 64 * K, 1}, {8*M + 64*K, 8*M - 64*K, 0}}},
		{"vol@two", "qemu:dirty-bitmap:one", [][3]int64{{0, 4 * M, 0}, {4 * M, 64 * K, 1}, {4*M + 64*K, 12*M - 64*K, 0}}},
		{"vol", "qemu:allocation-depth", [][3]int64{{0, M, 3}, {M, 3 * M, 0}, {4 * M, 64 * K, 2}, {4*M + 64*K, 4*M - 64*K, 0}, {8 * M, 64 * K, 1}, {8*M + 64*K, 8*M - 64*K, 0}}},
		{"vol@one", "varve:depth", [][3]int64{{0, M, 1}, {M, 15 * M, 0}}},
	} {
		var extents []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal([]byte(client(t, "nbdinfo", "--json", "--map="+c.context, d.uri(c.export))), &extents); err != nil {
			t.Fatal(err)
		}
		var got [][3]int64
		for _, e := range extents {
			got = append(got, [3]int64{e.Offset, e.Length, e.Type})
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s of %s: %v, want %v", c.context, c.export, got, c.want)
		}
	}

	// As QEMU's own tools read a bitmap: what is dirty shows as no data.
	uri := "driver=nbd,server.type=unix,server.path=" + filepath.Join(d.state, "nbd.sock") + ",export=vol,x-dirty-bitmap=qemu:dirty-bitmap:one"
	var mapped []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(client(t, "qemu-img", "map", "--output=json", "--image-opts", uri)), &mapped); err != nil {
		t.Fatal(err)
	}
	var dirty []int64
	for _, e := range mapped {
		if !e.Data {
			dirty = append(dirty, e.Start, e.Length)
		}
	}
	if want := fmt.Sprint([]int64{4 * M, 64 * K, 8 * M, 64 * K}); fmt.Sprint(dirty) != want {
		t.Errorf("qemu-img map of the bitmap: dirty %v, want %v", dirty, want)
	}
}
