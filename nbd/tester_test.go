package nbd_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestTesterClient: the protocol's own authors test their server with this
// client. It opens exports by EXPORT_NAME; its integrity tests replay logs of
// overlapping requests in flight, and compare every read with what the order
// of the log says.
func TestTesterClient(t *testing.T) {
	line := newer(t, "nbd-tester-client")
	if _, err := os.Stat(line[len(line)-1]); err != nil {
		if os.Getenv("STRICT") == "1" {
			t.Fatalf("%v: see e2e/peers.sh", err)
		}
		t.Skipf("%v: see e2e/peers.sh", err)
	}
	logs := filepath.Join(filepath.Dir(line[len(line)-1]), "../share/nbd-tester-client")
	huge := cutHuge(t, filepath.Join(logs, "integrityhuge-test.tr"))
	plain, secure := newRig(t), newTLSRig(t)
	unix := []string{"-u", plain.path}
	tls := []string{"-C", filepath.Join(secure.dir, "client-cert.pem"), "-K", filepath.Join(secure.dir, "client-key.pem"),
		"-A", filepath.Join(secure.dir, "ca-cert.pem"), "-H", "localhost", "127.0.0.1", strconv.Itoa(secure.tcp.Port)}
	for _, c := range []struct {
		name string
		rig  *rig
		at   []string
		args []string
	}{
		{"read", plain, unix, nil},
		{"write", plain, unix, []string{"-w"}},
		{"write and flush", plain, unix, []string{"-w", "-f"}},
		{"write, read-only", plain, unix, []string{"-w", "-F", "-N", "ro"}},
		{"oversize", plain, unix, []string{"-o"}},
		{"handshake", plain, unix, []string{"-h"}},
		{"integrity", plain, unix, []string{"-i", "-t", filepath.Join(logs, "integrity-test.tr")}},
		{"integrity huge", plain, unix, []string{"-i", "-t", huge}},
		{"write, TLS", secure.rig, tls, []string{"-w", "-f"}},
		{"integrity, TLS", secure.rig, tls, []string{"-i", "-t", filepath.Join(logs, "integrity-test.tr")}},
		{"integrity huge, TLS", secure.rig, tls, []string{"-i", "-t", huge}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rig.shelf.put(nbd.Export{Name: "fresh", Device: nbdtest.NewMemory(50 << 20)}) // the size that the logs were made for
			args := append(append(slices.Clone(line[1:]), "-N", "fresh"), c.args...)
			run(t, line[0], append(args, c.at...)...)
		})
	}
}

// cutHuge copies a log of requests and makes those of more than 32 MiB, which
// the protocol promises nobody, as long as that.
func cutHuge(t *testing.T, path string) string {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const most = 32 << 20
	cut := 0
	for at := 0; at+4 <= len(log); {
		switch be32(log[at:]) {
		case wireRequestMagic: // the request's header, without its payload
			if r := log[at : at+28]; be32(r[24:]) > most {
				binary.BigEndian.PutUint32(r[24:], most)
				cut++
			}
			at += 28
		case wireSimpleMagic:
			at += 16
		default:
			t.Fatalf("%s: %x at %d is neither a request nor a reply", path, log[at:at+4], at)
		}
	}
	if cut == 0 {
		t.Fatalf("%s has no request of more than %d bytes", path, most)
	}
	short := filepath.Join(t.TempDir(), "huge.tr")
	if err := os.WriteFile(short, log, 0o600); err != nil {
		t.Fatal(err)
	}
	return short
}
