package layers

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// formatVersion is the version of every structure in a volume's directory.
const formatVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc is the CRC-32C of b.
func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// crcWithout is the CRC-32C of b with the four bytes at off taken as zeros.
func crcWithout(b []byte, off int) uint32 {
	var zeros [4]byte
	c := crc32.Update(0, castagnoli, b[:off])
	c = crc32.Update(c, castagnoli, zeros[:])
	return crc32.Update(c, castagnoli, b[off+4:])
}

var le = binary.LittleEndian

// checkHeader checks what volume, chain, map and journal headers share: magic
// at 0, version at 8, length at 12, and a CRC in the last four of want bytes.
// want < 0 takes the length that the header states, if b has it.
func checkHeader(path string, b []byte, magic string, want int) error {
	if len(b) < 16 {
		return &CorruptError{path, 0, "a header", fmt.Sprintf("%d bytes", len(b))}
	}
	if string(b[:8]) != magic {
		return &CorruptError{path, 0, fmt.Sprintf("magic %q", magic), fmt.Sprintf("%q", b[:8])}
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		if v > formatVersion {
			return fmt.Errorf("%s: format version %d: %w", path, v, ErrUnsupported)
		}
		return &CorruptError{path, 8, fmt.Sprintf("version %d", formatVersion), fmt.Sprint(v)}
	}
	length := le.Uint32(b[12:])
	if want < 0 {
		want = len(b)
	}
	if int64(length) != int64(want) || len(b) < want || want < 20 {
		return &CorruptError{path, 12, fmt.Sprintf("length %d", want), fmt.Sprint(length)}
	}
	if got, stored := crc(b[:want-4]), le.Uint32(b[want-4:want]); got != stored {
		return &CorruptError{path, int64(want - 4), fmt.Sprintf("checksum %08x", stored), fmt.Sprintf("%08x", got)}
	}
	return nil
}

// putHeader writes magic, version and length into b, which is the whole
// structure.
func putHeader(b []byte, magic string) {
	copy(b, magic)
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[12:], uint32(len(b)))
}

// checkReserved refuses bytes that a newer program may have given a meaning.
func checkReserved(path string, b []byte, off, end int) error {
	for i, c := range b[off:end] {
		if c != 0 {
			return fmt.Errorf("%s: reserved byte at offset %d is %#x: %w", path, off+i, c, ErrUnsupported)
		}
	}
	return nil
}

// crcUpdate continues the CRC-32C c with b.
func crcUpdate(c uint32, b []byte) uint32 { return crc32.Update(c, castagnoli, b) }
