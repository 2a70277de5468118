package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/layers"
	"varve/layers/layertest"
	"varve/layers/qcow2"
)

// need skips the test if the machine lacks a program; with STRICT=1 it fails.
func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("STRICT") == "1" {
		t.Fatalf("%s is not installed: see e2e/setup.sh", program)
	}
	t.Skipf("%s is not installed", program)
}

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// content has what makes images differ: data that compresses and data that does
// not, zeros, partial clusters, and long holes.
func content(size int64) []byte {
	p := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(size), 3))
	for off := int64(0); off < size; {
		n := min(1+r.Int64N(300_000), size-off)
		switch r.IntN(4) {
		case 0:
			for i := range n {
				p[off+i] = byte(r.Uint32())
			}
		case 1:
			copy(p[off:off+n], bytes.Repeat([]byte("compress "), int(n)/9+1))
		}
		off += n
	}
	return p
}

func save(t testing.TB, dir, name string, p []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, o qcow2.Options) (*qcow2.Image, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return qcow2.Open(f, info.Size(), o)
}

// TestReadsWhatQEMUWrites: V8, import of qcow2.
func TestReadsWhatQEMUWrites(t *testing.T) {
	need(t, "qemu-img")
	for _, c := range []struct {
		name    string
		size    int64
		options string
		flags   []string
	}{
		{"version 3", 5 << 20, "compat=1.1", nil},
		{"version 2", 5 << 20, "compat=0.10", nil},
		{"zlib", 5 << 20, "compression_type=zlib", []string{"-c"}},
		{"zstd", 5 << 20, "compression_type=zstd", []string{"-c"}},
		{"zlib, version 2", 5 << 20, "compat=0.10", []string{"-c"}},
		{"zlib, clusters of 2 MiB", 5 << 20, "cluster_size=2M", []string{"-c"}},
		{"zstd, clusters of 2 MiB", 5 << 20, "cluster_size=2M,compression_type=zstd", []string{"-c"}},
		{"zstd, clusters of 4 KiB", 3 << 20, "cluster_size=4k,compression_type=zstd", []string{"-c"}},
		{"clusters of 512", 3 << 20, "cluster_size=512", nil},
		{"clusters of 4 KiB", 3 << 20, "cluster_size=4k", nil},
		{"clusters of 2 MiB", 5 << 20, "cluster_size=2M", nil},
		{"an odd size", 3<<20 + 512, "compat=1.1", nil},
		{"an odd size, clusters of 2 MiB", 3<<20 + 512, "cluster_size=2M", nil},
		{"lazy refcounts", 3 << 20, "lazy_refcounts=on,refcount_bits=1", nil},
		{"metadata in advance", 3 << 20, "preallocation=metadata", nil},
		{"all in advance", 3 << 20, "preallocation=falloc", nil},
		{"nothing skipped", 3 << 20, "compat=1.1", []string{"-S", "0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			want := content(c.size)
			save(t, dir, "raw", want)
			run(t, dir, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2", "-o", c.options}, c.flags...), "raw", "q")...)
			m, err := open(t, filepath.Join(dir, "q"), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			layertest.Run(t, m, layertest.Content{Bytes: want})
		})
	}
}

// TestZerosAndHoles: zero clusters are Zero, what was never written is Absent.
func TestZerosAndHoles(t *testing.T) {
	need(t, "qemu-io")
	dir := t.TempDir()
	run(t, dir, "qemu-img", "create", "-f", "qcow2", "q", "64G")
	run(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1G 128k", "-c", "write -z 2G 64k", "-c", "write -P 9 63G 1k", "q")
	m, err := open(t, filepath.Join(dir, "q"), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range m.Extents(0, m.Size()) {
		got = append(got, fmt.Sprintf("%d+%dk %v %v", e.Off>>30, e.Len>>10, e.Kind, err))
	}
	if want := "[1+128k data <nil> 2+64k zero <nil> 63+64k data <nil>]"; fmt.Sprint(got) != want {
		t.Errorf("extents %v, want %v", got, want)
	}
}

// memory is a layer of bytes that are all data.
type memory []byte

func (m memory) Size() int64                             { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		if e := (layers.Extent{Len: m.Size(), Kind: layers.Data}).Clip(off, n); e.Len > 0 {
			yield(e, nil)
		}
	}
}

// TestBacking: refused unless the caller opens it; then it is the layer below,
// also where it is shorter than the image.
func TestBacking(t *testing.T) {
	need(t, "qemu-io")
	dir := t.TempDir()
	base := content(2<<20 + 1024)
	save(t, dir, "base", base)
	run(t, dir, "qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "raw", "q", "3M")
	run(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 100k 300k", "-c", "write -z 1M 128k", "-c", "write -P 9 2900k 1k", "q")
	run(t, dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "q", "flat")
	want, err := os.ReadFile(filepath.Join(dir, "flat"))
	if err != nil {
		t.Fatal(err)
	}
	var refused *qcow2.BackingError
	if _, err := open(t, filepath.Join(dir, "q"), qcow2.Options{}); !errors.As(err, &refused) || refused.Name != "base" {
		t.Errorf("open without leave: %v, want a BackingError", err)
	}
	m, err := open(t, filepath.Join(dir, "q"), qcow2.Options{Backing: func(name, format string) (layers.Layer, error) {
		if name != "base" || format != "raw" {
			t.Errorf("backing file %q of format %q, want base, raw", name, format)
		}
		return memory(base), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	layertest.Run(t, m, layertest.Content{Bytes: want})
}

// TestRefuses what cannot be read as it is meant.
func TestRefuses(t *testing.T) {
	need(t, "qemu-img")
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"encryption", []string{"--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "q", "1M"}, "encrypted"},
		{"a data file", []string{"-o", "data_file=data", "q", "1M"}, "in another file"},
		{"extended L2 entries", []string{"-o", "extended_l2=on", "q", "1M"}, "extended L2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			run(t, dir, "qemu-img", append([]string{"create", "-f", "qcow2"}, c.args...)...)
			_, err := open(t, filepath.Join(dir, "q"), qcow2.Options{})
			if !errors.Is(err, layers.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestWrite: V8, export to qcow2. QEMU finds the image in order and the bytes
// the same, and so do we.
func TestWrite(t *testing.T) {
	for _, size := range []int64{0, 512, 65536, 5<<20 + 512, 12 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			want := content(size)
			path := writeImage(t, dir, memory(want))
			m, err := open(t, path, qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 {
				layertest.Run(t, m, layertest.Content{Bytes: want})
			}
			need(t, "qemu-img")
			save(t, dir, "raw", want)
			run(t, dir, "qemu-img", "check", path)
			run(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "raw", path)
		})
	}
}

func writeImage(t testing.TB, dir string, l layers.Layer) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "written"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last := int64(0)
	size, err := qcow2.Write(t.Context(), f, l, qcow2.WriteOptions{Progress: func(done, total int64) {
		if done < last || total != l.Size() {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != size || last != l.Size() {
		t.Errorf("file of %v bytes, want %d; progress ended at %d of %d; %v", info.Size(), size, last, l.Size(), err)
	}
	return f.Name()
}

// sparse is a large layer with little in it.
type sparse struct {
	size int64
	at   []int64 // of bytes that are 7
}

func (s sparse) Size() int64 { return s.size }
func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for _, at := range s.at {
		if off <= at && at < off+int64(len(p)) {
			p[at-off] = 7
		}
	}
	return len(p), nil
}
func (s sparse) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, at := range s.at {
			if e := (layers.Extent{Off: at, Len: 1, Kind: layers.Data}).Clip(off, n); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// TestWriteLarge: a disk of many TiB takes what is in it, and zeros that are
// said to be data take nothing.
func TestWriteLarge(t *testing.T) {
	need(t, "qemu-img")
	dir := t.TempDir()
	l := sparse{20 << 40, []int64{0, 1, 70_000, 512<<20 - 1, 512 << 20, 3 << 40, 20<<40 - 1}}
	path := writeImage(t, dir, l)
	info, err := os.Stat(path)
	if err != nil || info.Size() > 2<<20 {
		t.Errorf("the image of 6 clusters takes %d bytes: %v", info.Size(), err)
	}
	run(t, dir, "qemu-img", "check", path)
	m, err := open(t, path, qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 3)
	for _, at := range l.at {
		if _, err := m.ReadAt(p[:1], at); err != nil || p[0] != 7 {
			t.Errorf("byte at %d is %d, %v; want 7", at, p[0], err)
		}
	}
	zeros := writeImage(t, t.TempDir(), memory(make([]byte, 8<<20)))
	if info, _ := os.Stat(zeros); info.Size() != 4<<16 {
		t.Errorf("an image of zeros takes %d bytes, want four clusters", info.Size())
	}
}

// TestWriteFails: an error of the layer or the file is returned, and no header
// is there.
func TestWriteFails(t *testing.T) {
	full := errors.New("full")
	for n := range 12 {
		w := &failingWriter{left: n, err: full}
		_, err := qcow2.Write(t.Context(), w, memory(content(300_032)), qcow2.WriteOptions{})
		if w.left >= 0 && err != nil || w.left < 0 && !errors.Is(err, full) {
			t.Errorf("after %d writes: %v", n, err)
		}
		if w.left < 0 && w.header {
			t.Errorf("after %d writes there is a header", n)
		}
	}
	if _, err := qcow2.Write(t.Context(), &failingWriter{left: 100}, memory(make([]byte, 513)), qcow2.WriteOptions{}); err == nil {
		t.Error("a disk of 513 bytes is written")
	}
}

type failingWriter struct {
	left   int
	err    error
	header bool
}

func (w *failingWriter) WriteAt(p []byte, off int64) (int, error) {
	if w.left--; w.left < 0 {
		return 0, w.err
	}
	w.header = w.header || off == 0
	return len(p), nil
}

// readAll reads all of an image by its extents, within a bound.
func readAll(m *qcow2.Image) error {
	count := 0
	for e, err := range m.Extents(0, min(m.Size(), 16<<20)) {
		if err != nil {
			return err
		}
		if count++; count > 10_000 {
			return nil
		}
		p := make([]byte, min(e.Len, 4<<20))
		if _, err := m.ReadAt(p, e.Off); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}
