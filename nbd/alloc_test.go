//go:build !race

package nbd_test

import (
	"bytes"
	"testing"
)

// TestNoAllocationPerRequest on the path of small requests. The race
// detector makes pools forget, so it is not asked.
func TestNoAllocationPerRequest(t *testing.T) {
	b := newRig(t)
	b.main.WriteAt(pattern(1, 1<<20), 0)
	for name, c := range map[string]*rawClient{"simple": b.transmission(t, "main"), "structured": b.structuredTransmission(t, "main")} {
		reads := bytes.Repeat(requestBytes(cmdRead, 0, 1, 4096, 4096), 16)
		writes := bytes.Repeat(append(requestBytes(cmdWrite, 0, 1, 4096, 4096), pattern(1, 4096)...), 16)
		replies := make([]byte, 16*(16+4096)+16*16)
		if c.structured {
			replies = make([]byte, 16*(28+4096)+16*16)
		}
		round := func() {
			c.Write(reads)
			c.Write(writes)
			readFull(c, replies)
		}
		for range 100 {
			round()
		}
		if got := testing.AllocsPerRun(500, round) / 32; got > 0.05 {
			t.Errorf("%s: %.3f allocations a request, want none", name, got)
		}
	}
}

func readFull(c *rawClient, p []byte) {
	for len(p) > 0 {
		n, err := c.Conn.Read(p)
		if err != nil {
			c.Fatal(err)
		}
		p = p[n:]
	}
}
