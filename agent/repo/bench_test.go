package repo

import (
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// benchSize is the size of the image that the benchmarks make, in bytes.
const benchSize = 256 << 20

// flat is an image without holes.
type flat struct {
	io.ReaderAt
	size int64
}

func (f flat) Size() int64 { return f.size }

func (f flat) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		if e := (layers.Extent{Len: f.size, Kind: layers.Data}).Clip(off, n); e.Len > 0 {
			yield(e, nil)
		}
	}
}

// benchImage is the file that VARVE_BENCH_IMAGE names, or words in random
// order, which zstd brings to about a third.
func benchImage(b *testing.B) flat {
	if name := os.Getenv("VARVE_BENCH_IMAGE"); name != "" {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		info, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		return flat{f, info.Size()}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 2+rnd.IntN(10))
		for j := range words[i] {
			words[i][j] = byte(rnd.Uint32())
		}
	}
	image := make([]byte, 0, benchSize+16)
	for len(image) < benchSize {
		image = append(image, words[rnd.IntN(len(words))]...)
	}
	return flat{readerAt(image[:benchSize]), benchSize}
}

type readerAt []byte

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(p, r[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// benchStore is a directory, on tmpfs if VARVE_BENCH_DIR says so.
func benchStore(b *testing.B) object.Store {
	dir, err := os.MkdirTemp(os.Getenv("VARVE_BENCH_DIR"), "varve-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	s, err := object.CreateDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func benchRepo(b *testing.B) *Repo {
	r, err := Init(b.Context(), benchStore(b), Key{Passphrase: secret}, Params{cost: cheap})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func BenchmarkFull(b *testing.B) {
	image := benchImage(b)
	b.SetBytes(image.size)
	for b.Loop() {
		r := benchRepo(b)
		backup, err := r.Create(b.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: image})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(backup.Stored)/float64(image.size), "stored/byte")
	}
}

// BenchmarkIncrement changes 1 % of the blocks, scattered.
func BenchmarkIncrement(b *testing.B) {
	image := benchImage(b)
	r := benchRepo(b)
	volume := layers.NewID()
	full, err := r.Create(b.Context(), Job{ID: layers.NewID(), Volume: volume, Source: image})
	if err != nil {
		b.Fatal(err)
	}
	changes := &content{kinds: make([]layers.Kind, image.size/layers.BlockSize)}
	rnd := rand.New(rand.NewPCG(3, 4))
	changed := int64(0)
	for range len(changes.kinds) / 100 {
		changes.kinds[rnd.IntN(len(changes.kinds))] = layers.Data
	}
	for _, kind := range changes.kinds {
		if kind == layers.Data {
			changed += layers.BlockSize
		}
	}
	b.SetBytes(changed)
	for b.Loop() {
		backup, err := r.Create(b.Context(), Job{ID: layers.NewID(), Volume: volume, Parent: full.ID, Source: image, Changes: changes})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(backup.Stored)/float64(changed), "stored/changed")
	}
}

// nowhere is a Writer that forgets.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) WriteZeroes(int64, int64) error         { return nil }

func BenchmarkRestore(b *testing.B) {
	image := benchImage(b)
	r := benchRepo(b)
	full, err := r.Create(b.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: image})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(image.size)
	for b.Loop() {
		if err := r.Restore(b.Context(), full.ID, nowhere{}, RestoreOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead reads 4 KiB at random with an empty cache.
func BenchmarkRead(b *testing.B) {
	image := benchImage(b)
	r := benchRepo(b)
	full, err := r.Create(b.Context(), Job{ID: layers.NewID(), Volume: layers.NewID(), Source: image})
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	l, err := r.Layer(b.Context(), full.ID)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		if _, err := l.ReadAt(p, rnd.Int64N(image.size-4096)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPassphrase stretches a passphrase. What a process that has just begun
// takes is told by -benchtime 1x: later ones find their memory in the heap.
func BenchmarkPassphrase(b *testing.B) {
	salt := make([]byte, 32)
	for b.Loop() {
		stretchPassphrase(secret, salt, defaultCost)
	}
}
