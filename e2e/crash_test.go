package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/e2e/testbed"
)

// TestKill kills the daemon with SIGKILL while a client that is not ours
// writes and flushes, and starts it again, several times. Whatever a flush
// acknowledged is there; a block written since is one of the whole writes. V9
func TestKill(t *testing.T) {
	testbed.Require(t, "nbdcopy", "/usr/lib/python3/dist-packages/nbd.py")
	const blocks = 4096
	d := startDaemon(t)
	d.varve("volume", "create", "vol", "--size", fmt.Sprint(blocks*4096))
	flushed := make([]uint64, blocks) // the newest round that a flush acknowledged
	out := filepath.Join(t.TempDir(), "out")
	for life, rounds := range []int{1, 300, 30, 900} {
		writer := exec.Command("/usr/bin/python3", "testdata/writer.py", d.uri("vol"), fmt.Sprint(blocks), fmt.Sprint(life+1))
		lines, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for in := bufio.NewScanner(lines); in.Scan(); {
			words := strings.Fields(in.Text())
			round, err := strconv.ParseUint(words[0], 10, 64)
			if err != nil {
				t.Fatalf("writer said %q", in.Text())
			}
			for _, w := range words[1:] {
				b, err := strconv.Atoi(w)
				if err != nil {
					t.Fatalf("writer said %q", in.Text())
				}
				flushed[b] = round
			}
			if seen++; seen == rounds {
				d.kill()
			}
			if seen == rounds/2 {
				d.varve("snapshot", "create", "vol", "--name", fmt.Sprintf("during-%d", life))
			}
		}
		if err := writer.Wait(); err != nil {
			t.Fatalf("writer: %v", err)
		}
		if seen < rounds {
			t.Fatalf("the writer ended after %d rounds of %d", seen, rounds)
		}
		d.start()
		client(t, "nbdcopy", d.uri("vol"), out)
		content := readFile(t, out)
		for b := range blocks {
			block := content[b*4096:][:4096]
			number, round := binary.LittleEndian.Uint64(block), binary.LittleEndian.Uint64(block[8:])
			if round < flushed[b] || round > 0 && number != uint64(b) {
				t.Fatalf("life %d: block %d holds round %d of block %d, but a flush acknowledged round %d", life, b, round, number, flushed[b])
			}
			for i := 0; i < 4096; i += 16 {
				if string(block[i:i+16]) != string(block[:16]) {
					t.Fatalf("life %d: block %d is neither its old nor its new content at byte %d", life, b, i)
				}
			}
		}
	}
}
