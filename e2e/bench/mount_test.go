package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// imageFile is a file of eight blocks, of which two have data.
func imageFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(8 * blockSize); err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{0, 5} {
		if _, err := f.WriteAt([]byte{7}, block*blockSize+99); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestPlanReadsTakesNoHoles(t *testing.T) {
	f := imageFile(t)
	plan, err := planReads(f, 8*blockSize, 1)
	if err != nil || len(plan.offsets) != mountReads {
		t.Fatalf("%d reads, %v", len(plan.offsets), err)
	}
	for _, off := range plan.offsets {
		if off != 0 && off != 5*blockSize {
			t.Fatalf("a read at %d, where nothing is", off)
		}
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(8 * blockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := planReads(f, 8*blockSize, 1); err == nil {
		t.Error("an image of zeros has reads")
	}
}

// TestMountedIsCompared: a program that shows the image late is waited for, and
// one that shows another image is an error. No file system is needed for that.
func TestMountedIsCompared(t *testing.T) {
	f := imageFile(t)
	plan, err := planReads(f, 8*blockSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []bool{false, true} {
		shown := filepath.Join(t.TempDir(), "shown")
		script := "sleep 0.05; cp " + f.Name() + " part"
		if other {
			script += "; printf x | dd of=part bs=1 seek=20500 conv=notrunc 2>&1"
		}
		script = "cd " + filepath.Dir(shown) + "; " + script + "; mv part " + shown + "; exec sleep 60"
		m := &mounted{mountPlace: mountPlace{cold: t.TempDir(), point: t.TempDir()}}
		err := m.start(t.Context(), mountCommand{args: []string{"sh", "-c", script}, file: shown})
		if err != nil {
			t.Fatal(err)
		}
		first, err := m.first(plan)
		if err != nil || first[firstByte] < 50 {
			t.Errorf("the first byte after %v ms, %v; want more than 50", first[firstByte], err)
		}
		if figures, err := m.random(plan); (err != nil) != other || !other && figures[p50] <= 0 {
			t.Errorf("another image: %v; random reads: %v, %v", other, figures, err)
		}
		if figures, err := m.ordered(plan); (err != nil) != other || !other && figures[mibPerSecond] <= 0 {
			t.Errorf("another image: %v; reads in order: %v, %v", other, figures, err)
		}
		m.program.cmd.Process.Kill()
		<-m.program.done
		m.image.Close()
	}
	m := &mounted{}
	err = m.start(t.Context(), mountCommand{args: []string{"sh", "-c", "echo no such repository; exit 3"}, file: "/nonexistent"})
	if err == nil || !strings.Contains(err.Error(), "no such repository") {
		t.Errorf("a program that ends: %v", err)
	}
}

// TestSlowS3Delays what passes, in both directions, and carries it whole.
func TestSlowS3Delays(t *testing.T) {
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close()
	go func() {
		for {
			c, err := behind.Accept()
			if err != nil {
				return
			}
			go func() {
				io.CopyN(c, c, 300_000) // an echo
				c.Close()
			}()
		}
	}()
	s := &slowS3{behind: behind.Addr().String(), conns: make(map[net.Conn]bool)}
	if s.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer s.proxy.Close()
	go s.serve()
	began := time.Now()
	c, err := net.Dial("tcp", s.proxy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := make([]byte, 300_000)
	fillRandom(want, 1)
	go c.Write(want)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(want), err)
	}
	if took := time.Since(began); took < 4*slowS3Delay {
		t.Errorf("handshake, there and back take %v, want %v at least", took, 4*slowS3Delay)
	}
}

func TestReportMounts(t *testing.T) {
	b := &bench{}
	for _, s := range mountSteps {
		b.addJob("", s.job(), s.columns[0].of, s.bars)
	}
	b.has("borg", []string{"no-such-program-at-all"})
	b.addSample(sample{Job: "mount first byte", Peer: "varve", Metrics: metrics{firstByte: 91, cpuSeconds: 0.2, rss: 5 << 20}})
	b.addSample(sample{Job: "mount first byte", Peer: "restic", Metrics: metrics{firstByte: 910, cpuSeconds: 1, rss: 50 << 20}})
	var out strings.Builder
	b.report(&out)
	for _, want := range []string{
		"| varve | 91 | 0.20 | 5.0 |",
		"| borg | missing | missing | missing |",
		"| mount first byte | first_byte_ms | varve | restic | 10.00 |  | 2.86 reached |",
		"| mount 4k randread qd1 | p50_us | varve | borg-64k | not measured |  | 2.50 |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &out)
		}
	}
}
