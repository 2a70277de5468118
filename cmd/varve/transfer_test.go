package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"varve/layers"
)

// recorder is a sink in memory that counts what is written and fails at will.
type recorder struct {
	mu            sync.Mutex
	bytes         []byte
	wrote, zeroed int64
	left          int64 // bytes that may be written; -1: any
}

var errFull = errors.New("full")

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left >= 0 && r.wrote+int64(len(p)) > r.left {
		return 0, errFull
	}
	r.wrote += int64(len(p))
	return copy(r.bytes[off:], p), nil
}

func (r *recorder) WriteZeroes(off, n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.zeroed += n
	clear(r.bytes[off : off+n])
	return nil
}

// holey writes a file with a hole of 4 MiB, a MiB of zeros that are data, and
// an end within a block.
func holey(t *testing.T) (path string, want []byte, data int64) {
	t.Helper()
	want = make([]byte, 8<<20+100)
	r := rand.New(rand.NewPCG(5, 5))
	for _, at := range [][2]int{{0, 1 << 20}, {2<<20 + 4096, 8192}, {6 << 20, 2<<20 + 100}} {
		for i := range at[1] {
			want[at[0]+i] = byte(1 + r.Uint32N(255))
		}
		data += int64(at[1])
	}
	path = filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 2 << 20, 6 << 20} {
		if _, err := f.WriteAt(want[at:min(at+2<<20, int64(len(want)))], at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(want[8<<20:], 8<<20); err != nil {
		t.Fatal(err)
	}
	return path, want, data
}

// TestTransfer: V8. Only blocks with data are written; what is not blank is
// zeroed.
func TestTransfer(t *testing.T) {
	path, want, data := holey(t)
	for _, blank := range []bool{true, false} {
		image, err := openImage(path, "auto", false)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		to := &recorder{bytes: make([]byte, len(want)), left: -1}
		if !blank {
			to.bytes = bytes.Repeat([]byte{0xa5}, len(want))
		}
		tr := (&call{program: &program{stderr: io.Discard}}).newTransfer("copy", to, blank, int64(len(want)))
		if err := tr.layer(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(to.bytes, want) || tr.done != int64(len(want)) {
			t.Errorf("blank %v: other bytes, or %d of %d done", blank, tr.done, len(want))
		}
		if to.wrote != data || blank && to.zeroed != 0 || !blank && to.zeroed != int64(len(want))-data {
			t.Errorf("blank %v: wrote %d and zeroed %d bytes, of %d with %d of data", blank, to.wrote, to.zeroed, len(want), data)
		}
	}
}

// TestStream: V8. A stream may come in small pieces, end early, or fail.
func TestStream(t *testing.T) {
	_, want, data := holey(t)
	broken := errors.New("broken pipe")
	for _, c := range []struct {
		name string
		from io.Reader
		size int64
		err  error
	}{
		{"as long as said", bytes.NewReader(want), int64(len(want)), nil},
		{"shorter", bytes.NewReader(want), 20 << 20, nil},
		{"in pieces", iotest.HalfReader(bytes.NewReader(want)), 20 << 20, nil},
		{"longer", io.MultiReader(bytes.NewReader(want), bytes.NewReader([]byte{0})), int64(len(want)), usageError{}},
		{"failing", io.MultiReader(bytes.NewReader(want[:3<<20]), iotest.ErrReader(broken)), 20 << 20, broken},
	} {
		to := &recorder{bytes: make([]byte, max(c.size, int64(len(want)))), left: -1}
		tr := (&call{program: &program{stderr: io.Discard}}).newTransfer("copy", to, true, c.size)
		err := tr.wholeStream(t.Context(), c.from, c.size)
		var usage usageError
		switch {
		case c.err == nil && (err != nil || !bytes.Equal(to.bytes[:len(want)], want) || to.wrote != data):
			t.Errorf("%s: %v, or other bytes, or %d written and not %d", c.name, err, to.wrote, data)
		case errors.As(c.err, &usage) && !errors.As(err, &usage), c.err == broken && !errors.Is(err, broken):
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
	}
}

// TestTransferEnds: with the first error, and with the context.
func TestTransferEnds(t *testing.T) {
	path, want, _ := holey(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		left int64
		want error
	}{{t.Context(), 1 << 20, errFull}, {canceled, -1, context.Canceled}} {
		image, err := openImage(path, "raw", false)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		to := &recorder{bytes: make([]byte, len(want)), left: c.left}
		tr := (&call{program: &program{stderr: io.Discard}}).newTransfer("copy", to, true, int64(len(want)))
		if err := tr.layer(c.ctx, image); !errors.Is(err, c.want) {
			t.Errorf("layer: error %v, want %v", err, c.want)
		}
		to.wrote = 0
		if err := tr.wholeStream(c.ctx, bytes.NewReader(want), int64(len(want))); !errors.Is(err, c.want) {
			t.Errorf("stream: error %v, want %v", err, c.want)
		}
	}
}

// TestStreamInterrupted: Ctrl-C ends an import from a pipe that nobody writes to.
func TestStreamInterrupted(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // which ends the read that was left behind
	ctx, cancel := context.WithCancel(t.Context())
	to := &recorder{bytes: make([]byte, 1<<20), left: -1}
	tr := (&call{program: &program{stderr: io.Discard}}).newTransfer("copy", to, true, 1<<20)
	ended := make(chan error, 1)
	go func() { ended <- tr.wholeStream(ctx, interruptible(ctx, r), 1<<20) }()
	w.Write([]byte("some"))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestZeroRun(t *testing.T) {
	p := make([]byte, 4*layers.BlockSize)
	p[2*layers.BlockSize] = 1
	for _, c := range []struct {
		from int
		off  int64
		n    int
		zero bool
	}{
		{0, 0, 2 * layers.BlockSize, true},
		{2 * layers.BlockSize, 0, layers.BlockSize, false},
		{3 * layers.BlockSize, 0, layers.BlockSize, true},
		{100, 100, 2*layers.BlockSize - 100, true},
		{2*layers.BlockSize - 1, 2*layers.BlockSize - 1, 1, true},
	} {
		if n, zero := zeroRun(p[c.from:], c.off); n != c.n || zero != c.zero {
			t.Errorf("zeroRun(p[%d:], %d) = %d, %v; want %d, %v", c.from, c.off, n, zero, c.n, c.zero)
		}
	}
}
