package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"varve/e2e/testbed"
)

// TestRandomLibnbd operates at random on a volume over several connections of
// libnbd, with snapshots, compared with an array of bytes. S1, S3, V2
func TestRandomLibnbd(t *testing.T) {
	testbed.Require(t, "/usr/lib/python3/dist-packages/nbd.py")
	eachSeed(t, func(t *testing.T, seed uint64) {
		d := startDaemon(t)
		d.varve("volume", "create", "vol", "--size", "8389120") // 8 MiB and a sector
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		fsx := exec.CommandContext(ctx, "/usr/bin/python3", "testdata/fsx.py", d.uri("vol"), d.program, "vol", seedText(seed), "1500")
		fsx.Env = d.environ()
		if out, err := fsx.CombinedOutput(); err != nil {
			t.Errorf("fsx.py: %v\n%s", err, out)
		}
	})
}

// TestRandomQEMU does so through qemu-io, which compares each read itself: runs
// of one byte. Snapshots are compared byte by byte.
func TestRandomQEMU(t *testing.T) {
	testbed.Require(t, "qemu-io", "nbdcopy")
	eachSeed(t, func(t *testing.T, seed uint64) {
		const size = 4 * MiB
		d := startDaemon(t)
		d.varve("volume", "create", "vol", "--size", strconv.Itoa(size))
		r := rand.New(rand.NewPCG(seed, 0))
		model := make([]byte, size)
		h := &history{t: t, scratch: t.TempDir()}
		snapshots := map[string][]byte{}
		for round := range 5 {
			var script strings.Builder
			for range 150 {
				script.WriteString(qemuStep(r, model) + "\n")
			}
			qemu := exec.Command("qemu-io", "-t", "writeback", "-d", "unmap", "-f", "raw", d.uri("vol"))
			qemu.Stdin = strings.NewReader(script.String() + "flush\n")
			out, err := qemu.CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("failed")) || bytes.Contains(out, []byte("error")) {
				t.Fatalf("qemu-io: %v\n%s\nfor\n%s", err, out, script.String())
			}
			name := fmt.Sprintf("s%d", round)
			d.varve("snapshot", "create", "vol", "--name", name)
			snapshots["vol@"+name] = bytes.Clone(model)
		}
		snapshots["vol"] = model
		for name, want := range snapshots {
			if got, err := h.export(d, name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s differs from what was written, %v", name, err)
			}
		}
	})
}

// qemuStep is one command of qemu-io; the model follows. A read is of a run of
// one byte, since qemu-io knows no other.
func qemuStep(r *rand.Rand, model []byte) string {
	unit := []int{512, 4096}[r.IntN(2)]
	n := (1 + r.IntN(200*1024/unit)) * unit
	off := r.IntN((len(model)-n)/unit+1) * unit
	part := model[off : off+n]
	switch k := r.IntN(10); {
	case k < 4:
		pattern, fua := byte(1+r.IntN(255)), []string{"", "-f "}[r.IntN(2)]
		copy(part, bytes.Repeat([]byte{pattern}, n))
		return fmt.Sprintf("write %s-P %d %d %d", fua, pattern, off, n)
	case k < 6:
		clear(part)
		return fmt.Sprintf("write -z %s%d %d", []string{"", "-u ", "-f "}[r.IntN(3)], off, n)
	case k < 7:
		return "flush"
	default:
		run := 1
		for run < n && part[run] == part[0] {
			run++
		}
		return fmt.Sprintf("read -P %d %d %d", part[0], off, run)
	}
}
