package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC32C of all structures that stand in the clear.
func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

var errCut = errors.New("ends too early")

// A decoder takes numbers off the front of a byte string. The first thing that
// is not there, or not in its only form, is kept as err, and all that follows
// reads as zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.rest = nil
}

func (d *decoder) failf(format string, args ...any) { d.fail(fmt.Errorf(format, args...)) }

// bytes returns the next n bytes, which are not copied; nil after an error.
func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.fail(errCut)
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	if len(d.rest) > 0 && d.rest[0] < 0x80 { // the usual case
		v := uint64(d.rest[0])
		d.rest = d.rest[1:]
		return v
	}
	v, n := binary.Uvarint(d.rest)
	switch {
	case n == 0:
		d.fail(errCut)
		return 0
	case n < 0:
		d.fail(errors.New("a number has more than 64 bits"))
		return 0
	case d.rest[n-1] == 0:
		d.fail(errors.New("a number is not in its shortest form"))
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) svarint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// upTo is a uvarint that must not be over limit.
func (d *decoder) upTo(limit int64, what string) int64 {
	v := d.uvarint()
	if v > uint64(limit) {
		d.failf("%s is %d, over %d", what, v, limit)
		return 0
	}
	return int64(v)
}

// count is the number of things to come that take at least size bytes each, so
// that nobody allocates for more than there can be.
func (d *decoder) count(size int, what string) int {
	return int(d.upTo(int64(len(d.rest)/size), what))
}

// end reports the first error, or that something is left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.rest) > 0 {
		d.failf("%d bytes too many", len(d.rest))
	}
	return d.err
}

func appendSvarint(b []byte, v int64) []byte {
	return binary.AppendUvarint(b, uint64(v)<<1^uint64(v>>63))
}

// u24s writes the low bytes, then the middle bytes, then the high bytes of a
// column: what has little information in it then stands together for zstd.
func appendU24s(b []byte, values []uint32) []byte {
	for shift := 0; shift < 24; shift += 8 {
		for _, v := range values {
			b = append(b, byte(v>>shift))
		}
	}
	return b
}

// u24s reads n numbers as appendU24s wrote them, through set.
func (d *decoder) u24s(n int, set func(i int, v uint32)) {
	if n > len(d.rest)/3 {
		d.fail(errCut)
		return
	}
	low, middle, high := d.bytes(n), d.bytes(n), d.bytes(n)
	for i := range n {
		set(i, uint32(low[i])|uint32(middle[i])<<8|uint32(high[i])<<16)
	}
}
