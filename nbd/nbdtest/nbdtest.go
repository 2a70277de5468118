// Package nbdtest holds the conformance suite for nbd.Device and a device in
// memory that passes it. Only tests import it.
package nbdtest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"varve/layers"
	"varve/nbd"
)

var seed = flag.Uint64("nbdtest.seed", 0, "seed of the random operations; 0 takes a new one")

// Size is the size of the devices that Run asks for, in bytes.
const Size = 4 << 20

// Run checks that the devices which open makes keep the contract of
// nbd.Device. Each call of open returns a new, empty, writable device of Size
// bytes, which open closes with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) nbd.Device) {
	run(t, open, []fact{
		{"a new device reads as zeros", testEmpty},
		{"what was written is read at any alignment", testAlignment},
		{"a read past the end is cut with io.EOF", testReadPastEnd},
		{"a write that crosses the end is refused whole", testWritePastEnd},
		{"written zeros read as zeros and leave their neighbours", testZeroes},
		{"extents are in order, clipped and true", testExtents},
		{"empty ranges change nothing", testEmptyRanges},
		{"a flush after writes succeeds, again and again", testFlush},
		{"random operations agree with a byte slice", testModel},
		{"goroutines at different bytes do not disturb each other", testConcurrent},
	})
}

// RunSparse is Run for devices that know their zeros: what was never written,
// and whole blocks that were zeroed, must not be Data.
func RunSparse(t *testing.T, open func(t *testing.T) nbd.Device) {
	Run(t, open)
	run(t, open, []fact{
		{"nothing is data at first, or after empty writes", testNoData},
		{"zeroed blocks are no data", testZeroesAreNoData},
	})
}

type fact struct {
	name string
	test func(*testing.T, nbd.Device)
}

func run(t *testing.T, open func(t *testing.T) nbd.Device, facts []fact) {
	for _, c := range facts {
		t.Run(c.name, func(t *testing.T) {
			d := open(t)
			if got := d.Size(); got != Size {
				t.Fatalf("Size() = %d, want %d", got, Size)
			}
			c.test(t, d)
		})
	}
}

func testEmpty(t *testing.T, d nbd.Device) {
	if got := read(t, d, 0, Size); !isZero(got) {
		t.Error("a new device has bytes that are not zero")
	}
}

func testNoData(t *testing.T, d nbd.Device) {
	testEmptyRanges(t, d)
	if n := dataBytes(t, d, 0, Size); n != 0 {
		t.Errorf("a new device reports %d bytes of data, want 0", n)
	}
}

func testZeroesAreNoData(t *testing.T, d nbd.Device) {
	write(t, d, 0, pattern(0, 1<<20))
	if err := d.WriteZeroes(65536-1, 262144+2); err != nil {
		t.Fatal(err)
	}
	if n := dataBytes(t, d, 65536, 262144); n != 0 {
		t.Errorf("a range of whole zeroed blocks has %d bytes of data, want 0", n)
	}
}

func testAlignment(t *testing.T, d nbd.Device) {
	for _, c := range []struct{ off, n int64 }{
		{0, 1}, {1, 1}, {511, 2}, {4095, 2}, {4096, 4096}, {4097, 4095},
		{8191, 8194}, {1<<20 - 3, 70_000}, {Size - 1, 1}, {Size - 5000, 5000},
	} {
		around := read(t, d, max(c.off-1, 0), 1)
		want := pattern(c.off, c.n)
		write(t, d, c.off, want)
		if got := read(t, d, c.off, c.n); !bytes.Equal(got, want) {
			t.Errorf("[%d, +%d): read back other bytes", c.off, c.n)
		}
		if c.off > 0 && !bytes.Equal(read(t, d, c.off-1, 1), around) {
			t.Errorf("[%d, +%d): the byte before has changed", c.off, c.n)
		}
	}
}

func testReadPastEnd(t *testing.T, d nbd.Device) {
	write(t, d, Size-10, pattern(0, 10))
	p := make([]byte, 100)
	n, err := d.ReadAt(p, Size-10)
	if n != 10 || err != io.EOF {
		t.Errorf("ReadAt across the end = %d, %v, want 10, io.EOF", n, err)
	}
	if !bytes.Equal(p[:n], pattern(0, 10)) {
		t.Error("ReadAt across the end returned other bytes")
	}
	for _, off := range []int64{Size, Size + 1, 1 << 62} {
		if n, err := d.ReadAt(p, off); n != 0 || err != io.EOF {
			t.Errorf("ReadAt(%d) = %d, %v, want 0, io.EOF", off, n, err)
		}
	}
	if n, err := d.ReadAt(p, -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1) = %d, %v, want 0 and an error", n, err)
	}
}

func testWritePastEnd(t *testing.T, d nbd.Device) {
	for _, off := range []int64{Size - 50, Size, Size + 1, 1<<63 - 50, -1} {
		if n, err := d.WriteAt(pattern(0, 100), off); n != 0 || err == nil {
			t.Errorf("WriteAt(100 bytes, %d) = %d, %v, want 0 and an error", off, n, err)
		}
		if err := d.WriteZeroes(off, 100); err == nil {
			t.Errorf("WriteZeroes(%d, 100) succeeded", off)
		}
	}
	if d.Size() != Size {
		t.Errorf("Size() = %d after it, want %d", d.Size(), Size)
	}
	if got := read(t, d, Size-50, 50); !isZero(got) {
		t.Error("a refused write left bytes behind")
	}
}

func testZeroes(t *testing.T, d nbd.Device) {
	write(t, d, 0, pattern(0, 1<<20))
	for _, c := range []struct{ off, n int64 }{{0, 4096}, {8192 + 100, 3000}, {65536, 262144}, {500_001, 99_999}} {
		want := pattern(0, 1<<20)
		copy(want, read(t, d, 0, 1<<20))
		clear(want[c.off : c.off+c.n])
		if err := d.WriteZeroes(c.off, c.n); err != nil {
			t.Fatalf("WriteZeroes(%d, %d): %v", c.off, c.n, err)
		}
		if got := read(t, d, 0, 1<<20); !bytes.Equal(got, want) {
			t.Errorf("WriteZeroes(%d, %d): other bytes than asked for have changed", c.off, c.n)
		}
	}
}

func testExtents(t *testing.T, d nbd.Device) {
	write(t, d, 64<<10, pattern(0, 64<<10))
	write(t, d, 256<<10, pattern(0, 1))
	if err := d.WriteZeroes(80<<10, 16<<10); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, n int64 }{
		{0, Size}, {70_001, 12_345}, {64 << 10, 64 << 10}, {0, 1}, {Size - 1, 1}, {Size - 1, 100}, {Size, 10}, {0, 0},
	} {
		checkExtents(t, d, c.off, c.n)
	}
	for e, err := range d.Extents(0, Size) { // an early end is allowed
		_, _ = e, err
		break
	}
}

// checkExtents holds the extents of a range to their contract, and to the
// bytes: what is not Data reads as zeros.
func checkExtents(t *testing.T, d nbd.Device, off, n int64) {
	t.Helper()
	pos, end := off, min(off+n, Size)
	silence := func(until int64) {
		if until > pos && !isZero(read(t, d, pos, until-pos)) {
			t.Errorf("Extents(%d, %d): [%d, %d) is not data but has bytes", off, n, pos, until)
		}
	}
	for e, err := range d.Extents(off, n) {
		if err != nil {
			t.Fatalf("Extents(%d, %d): %v", off, n, err)
		}
		if e.Len <= 0 || e.Off < pos || e.End() > end {
			t.Fatalf("Extents(%d, %d): %+v after %d, want inside [%d, %d)", off, n, e, pos, pos, end)
		}
		silence(e.Off)
		pos = e.Off
		if e.Kind != layers.Data {
			silence(e.End())
		}
		pos = e.End()
	}
	silence(end)
}

func testEmptyRanges(t *testing.T, d nbd.Device) {
	if n, err := d.WriteAt(nil, 10); n != 0 || err != nil {
		t.Errorf("WriteAt(nil) = %d, %v", n, err)
	}
	if n, err := d.ReadAt(nil, 10); n != 0 || err != nil {
		t.Errorf("ReadAt(nil) = %d, %v", n, err)
	}
	if err := d.WriteZeroes(10, 0); err != nil {
		t.Errorf("WriteZeroes(10, 0): %v", err)
	}
	if got := read(t, d, 0, Size); !isZero(got) {
		t.Error("empty ranges changed bytes")
	}
}

func testFlush(t *testing.T, d nbd.Device) {
	for i := range int64(3) {
		write(t, d, i*4096, pattern(i, 4096))
		if err := d.Flush(); err != nil {
			t.Fatalf("Flush %d: %v", i, err)
		}
		if err := d.Flush(); err != nil {
			t.Fatalf("Flush %d without a write: %v", i, err)
		}
		if got := read(t, d, i*4096, 4096); !bytes.Equal(got, pattern(i, 4096)) {
			t.Fatalf("Flush %d: the bytes have changed", i)
		}
	}
}

func testModel(t *testing.T, d nbd.Device) {
	s := *seed
	for s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-nbdtest.seed=%d", s)
	r := rand.New(rand.NewPCG(s, s))
	want := make([]byte, Size)
	for step := range 600 {
		off := r.Int64N(Size)
		n := 1 + r.Int64N(min(Size-off, 1<<(4+r.IntN(15))))
		if r.IntN(3) == 0 {
			off, n = off&^4095, (n+4095)&^4095
			n = min(n, Size-off)
		}
		switch r.IntN(8) {
		case 0, 1, 2:
			p := pattern(r.Int64(), n)
			copy(want[off:], p)
			write(t, d, off, p)
		case 3, 4:
			clear(want[off : off+n])
			if err := d.WriteZeroes(off, n); err != nil {
				t.Fatalf("step %d: WriteZeroes(%d, %d): %v", step, off, n, err)
			}
		case 5:
			if err := d.Flush(); err != nil {
				t.Fatalf("step %d: Flush: %v", step, err)
			}
		case 6:
			checkExtents(t, d, off, n)
		default:
			if !bytes.Equal(read(t, d, off, n), want[off:off+n]) {
				t.Fatalf("step %d: [%d, +%d) differs from the model", step, off, n)
			}
		}
	}
	if !bytes.Equal(read(t, d, 0, Size), want) {
		t.Fatal("the device differs from the model at the end")
	}
}

func testConcurrent(t *testing.T, d nbd.Device) {
	const share = Size / 8
	var all sync.WaitGroup
	for g := range int64(8) {
		all.Go(func() {
			want := pattern(g, share)
			for off := int64(0); off < share; off += 10_000 { // shares meet inside blocks
				n := min(10_000, share-off)
				if _, err := d.WriteAt(want[off:off+n], g*share+off); err != nil {
					t.Errorf("WriteAt: %v", err)
					return
				}
				if off%30_000 == 0 {
					if err := d.Flush(); err != nil {
						t.Errorf("Flush: %v", err)
					}
				}
				got := make([]byte, n)
				if _, err := d.ReadAt(got, g*share+off); err != nil || !bytes.Equal(got, want[off:off+n]) {
					t.Errorf("goroutine %d reads other bytes at %d (%v)", g, off, err)
					return
				}
			}
		})
	}
	all.Wait()
	for g := range int64(8) {
		if !bytes.Equal(read(t, d, g*share, share), pattern(g, share)) {
			t.Errorf("the share of goroutine %d differs at the end", g)
		}
	}
}

func read(t *testing.T, d nbd.Device, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	if m, err := d.ReadAt(p, off); int64(m) != n || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", n, off, m, err)
	}
	return p
}

func write(t *testing.T, d nbd.Device, off int64, p []byte) {
	t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}

// dataBytes counts the bytes of [off, off+n) that are Data.
func dataBytes(t *testing.T, d nbd.Device, off, n int64) (sum int64) {
	t.Helper()
	for e, err := range d.Extents(off, n) {
		if err != nil {
			t.Fatalf("Extents(%d, %d): %v", off, n, err)
		}
		if e.Kind == layers.Data {
			sum += e.Len
		}
	}
	return sum
}

// pattern makes n random bytes that depend on s alone; a longer pattern begins
// with a shorter one.
func pattern(s, n int64) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%032x", s)[:32])).Read(p)
	return p
}

func isZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }
