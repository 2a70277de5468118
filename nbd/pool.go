package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Payload buffers come from pools, one for each power of two from 4 KiB to
// maxPayload. They begin at a multiple of 4096 in memory, for devices that do
// direct I/O.

const (
	bufferAlign = 4096
	minClass    = 12 // 4 KiB
	maxClass    = 25 // 32 MiB, maxPayload
)

var pools [maxClass - minClass + 1]sync.Pool

// A buffer is owned by one holder at a time, who gives it back with free.
type buffer struct {
	b     []byte // the whole of it, a power of two long
	class int
}

// newBuffer returns a buffer of at least n bytes with any content; n is at
// most maxPayload.
func newBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if class > maxClass {
		panic("nbd: buffer larger than the largest payload")
	}
	if b, ok := pools[class-minClass].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: alignedBytes(1 << class), class: class}
}

// free gives the buffer back to its pool.
func (b *buffer) free() { pools[b.class-minClass].Put(b) }

// alignedBytes makes n bytes that begin at a multiple of bufferAlign.
func alignedBytes(n int) []byte {
	b := make([]byte, n)
	if skew := address(b) % bufferAlign; skew == 0 {
		return b
	}
	b = make([]byte, n+bufferAlign)
	skip := int(-address(b) % bufferAlign)
	return b[skip : skip+n : skip+n]
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
