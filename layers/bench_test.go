package layers

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchVolume returns a volume of 1 GiB with data everywhere and the given
// number of snapshots, each with some changes. TMPDIR says which disk.
func benchVolume(b *testing.B, snapshots int) *Volume {
	b.Helper()
	v, err := Create(filepath.Join(b.TempDir(), "v"), NewID(), 1<<30, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := v.Close(); err != nil {
			b.Error(err)
		}
	})
	p := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	for off := int64(0); off < v.Size(); off += int64(len(p)) {
		if _, err := v.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	for range snapshots {
		if err := v.Snapshot(NewID()); err != nil {
			b.Fatal(err)
		}
		for range 64 {
			if _, err := v.WriteAt(p[:BlockSize], randomBlock(r, v)); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := v.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := v.tidy(); err != nil {
		b.Fatal(err)
	}
	return v
}

func randomBlock(r *rand.Rand, v *Volume) int64 { return r.Int64N(v.Size()/BlockSize) * BlockSize }

// eachLength runs a benchmark with short and long chains: S6.
func eachLength(b *testing.B, f func(b *testing.B, v *Volume)) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("snapshots=%d", n), func(b *testing.B) {
			v := benchVolume(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			f(b, v)
			b.StopTimer()
		})
	}
}

func BenchmarkRandomRead4K(b *testing.B) {
	eachLength(b, func(b *testing.B, v *Volume) {
		b.SetBytes(BlockSize)
		p := make([]byte, BlockSize)
		r := rand.New(rand.NewPCG(2, 2))
		for b.Loop() {
			if _, err := v.ReadAt(p, randomBlock(r, v)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// S8: the same of a snapshot, where each block is compared with its checksum.
func BenchmarkRandomReadChecked4K(b *testing.B) {
	eachLength(b, func(b *testing.B, v *Volume) {
		b.SetBytes(BlockSize)
		id := NewID()
		if err := v.Snapshot(id); err != nil {
			b.Fatal(err)
		}
		if err := v.tidy(); err != nil {
			b.Fatal(err)
		}
		w, err := v.View(id)
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		p := make([]byte, BlockSize)
		r := rand.New(rand.NewPCG(2, 2))
		for b.Loop() {
			if _, err := w.ReadAt(p, randomBlock(r, v)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRandomWrite4K(b *testing.B) {
	eachLength(b, func(b *testing.B, v *Volume) {
		b.SetBytes(BlockSize)
		p := make([]byte, BlockSize)
		r := rand.New(rand.NewPCG(3, 3))
		for b.Loop() {
			if _, err := v.WriteAt(p, randomBlock(r, v)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRandomWrite4KFlush32(b *testing.B) {
	eachLength(b, func(b *testing.B, v *Volume) {
		b.SetBytes(BlockSize)
		p := make([]byte, BlockSize)
		r := rand.New(rand.NewPCG(4, 4))
		var flushes latencies
		for i := 0; b.Loop(); i++ {
			if _, err := v.WriteAt(p, randomBlock(r, v)); err != nil {
				b.Fatal(err)
			}
			if i%32 == 31 {
				if err := flushes.time(v.Flush); err != nil {
					b.Fatal(err)
				}
			}
		}
		flushes.report(b)
	})
}

// latencies are how long flushes took.
type latencies []time.Duration

func (l *latencies) time(flush func() error) error {
	began := time.Now()
	err := flush()
	*l = append(*l, time.Since(began))
	return err
}

func (l latencies) report(b *testing.B) {
	slices.Sort(l)
	for unit, share := range map[string]int{"us-p50": 500, "us-p99": 990, "us-max": 1000} {
		if len(l) > 0 {
			b.ReportMetric(float64(l[min(len(l)*share/1000, len(l)-1)].Microseconds()), unit)
		}
	}
}

func BenchmarkSequential1M(b *testing.B) {
	eachLength(b, func(b *testing.B, v *Volume) {
		p := make([]byte, 1<<20)
		for name, do := range map[string]func([]byte, int64) (int, error){"read": v.ReadAt, "write": v.WriteAt} {
			b.Run(name, func(b *testing.B) {
				b.SetBytes(1 << 20)
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if _, err := do(p, off); err != nil {
						b.Fatal(err)
					}
					off = (off + 1<<20) % v.Size()
				}
			})
		}
	})
}

func BenchmarkSnapshot(b *testing.B) {
	v := benchVolume(b, 1)
	p := make([]byte, BlockSize)
	for i := 0; b.Loop(); i++ {
		if _, err := v.WriteAt(p, int64(i%1000)*BlockSize); err != nil {
			b.Fatal(err)
		}
		id := NewID()
		if err := v.Snapshot(id); err != nil {
			b.Fatal(err)
		}
		if err := v.DeleteSnapshot(id, false); err != nil {
			b.Fatal(err)
		}
	}
}

// V7: a clone of 1 TiB, all of which the map says is data, made and opened.
func BenchmarkClone(b *testing.B) {
	tune := defaultTuning
	tune.background = false // to read 1 TiB for its checksums
	open := func(d osDisk) *Volume {
		v, err := openVolume(d, Options{}, tune)
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	d := osDisk{b.TempDir()}
	if err := createVolume(d, NewID(), 1<<40, tune); err != nil {
		b.Fatal(err)
	}
	v := open(d)
	defer v.Close()
	id := NewID()
	if err := errors.Join(v.head.set(0, 1<<28, Data), v.checkpoint(), v.Snapshot(id), v.checkpoint()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		d := osDisk{b.TempDir()}
		if err := v.cloneTo(d, NewID(), id); err != nil {
			b.Fatal(err)
		}
		c := open(d)
		b.StopTimer()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// The same jobs on a plain file: what the file system gives.
func BenchmarkPlainFile(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1<<20)
	for off := int64(0); off < 1<<30; off += 1 << 20 {
		if _, err := f.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	p = p[:BlockSize]
	r := rand.New(rand.NewPCG(5, 5))
	var flushes latencies
	for name, do := range map[string]func(io.ReaderAt, io.WriterAt, int) error{
		"read": func(rd io.ReaderAt, _ io.WriterAt, _ int) error {
			_, err := rd.ReadAt(p, r.Int64N(1<<18)*BlockSize)
			return err
		},
		"write": func(_ io.ReaderAt, w io.WriterAt, _ int) error {
			_, err := w.WriteAt(p, r.Int64N(1<<18)*BlockSize)
			return err
		},
		"flush32": func(_ io.ReaderAt, w io.WriterAt, i int) error {
			_, err := w.WriteAt(p, r.Int64N(1<<18)*BlockSize)
			if err == nil && i%32 == 31 {
				err = flushes.time(func() error { return unix.Fdatasync(int(f.Fd())) })
			}
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(BlockSize)
			flushes = flushes[:0]
			for i := 0; b.Loop(); i++ {
				if err := do(f, f, i); err != nil {
					b.Fatal(err)
				}
			}
			flushes.report(b)
		})
	}
}
