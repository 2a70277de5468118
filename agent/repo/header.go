package repo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Kinds of sealed objects: docs/format.md 2.5.
type objectKind uint8

const (
	kindData       objectKind = 1
	kindLeaves     objectKind = 2
	kindRoot       objectKind = 4
	kindSession    objectKind = 5
	kindRelocation objectKind = 7
	kindCondemned  objectKind = 8
	kindClaim      objectKind = 10
	kindTombstone  objectKind = 11
	kindHold       objectKind = 12
	kindCaption    objectKind = 13
	kindLast                  = kindCaption
)

const (
	headerSize  = 112
	headerBound = 108 // the part that sections vouch for: all but the checksum
	headerMagic = "VARVOBJT"
)

// A header begins every sealed object. It says which key opens it.
type header struct {
	kind       objectKind
	suite      suite
	id         objectID
	key        keyRef
	commitment [32]byte
	inner      uint32 // stored length of the trailer, the summary or the body
	total      int64  // length of the object in bytes
}

// append adds the headerSize bytes of h to b.
func (h *header) append(b []byte) []byte {
	start := len(b)
	b = append(b, headerMagic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, headerSize)
	b = append(b, byte(h.kind), byte(h.suite), 0, 0)
	b = append(b, h.id[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.key.epoch)
	b = binary.LittleEndian.AppendUint64(b, h.key.id)
	b = append(b, h.key.volume[:]...)
	b = append(b, h.commitment[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.inner)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.total))
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

// parseHeader reads the header at the front of b.
func parseHeader(b []byte) (header, error) {
	var h header
	if err := checkFront(b, headerMagic, headerSize); err != nil {
		return h, err
	}
	if length := binary.LittleEndian.Uint16(b[10:]); length != headerSize {
		return h, fmt.Errorf("header length %d, expected %d", length, headerSize)
	}
	if err := checkSum(b[:headerSize]); err != nil {
		return h, err
	}
	h.kind, h.suite = objectKind(b[12]), suite(b[13])
	copy(h.id[:], b[16:])
	h.key.epoch = binary.LittleEndian.Uint32(b[36:])
	h.key.id = binary.LittleEndian.Uint64(b[40:])
	copy(h.key.volume[:], b[48:])
	copy(h.commitment[:], b[64:])
	h.inner = binary.LittleEndian.Uint32(b[96:])
	h.total = int64(binary.LittleEndian.Uint64(b[100:]))
	switch {
	case b[14]|b[15] != 0:
		return h, errReserved
	case h.kind == 0 || h.kind > kindLast:
		return h, fmt.Errorf("unknown kind of object %d: %w", h.kind, ErrVersion)
	case h.suite != suiteAES && h.suite != suiteOpen:
		return h, fmt.Errorf("unknown suite %d: %w", h.suite, ErrVersion)
	case h.inner < tagSize || h.total < headerSize+int64(h.inner):
		return h, fmt.Errorf("lengths %d and %d do not fit each other", h.inner, h.total)
	}
	return h, nil
}

var errReserved = errors.New("reserved bytes are not zero")

// checkFront looks at a magic and the version behind it, in this order, in a
// structure of at least size bytes.
func checkFront(b []byte, magic string, size int) error {
	if len(b) < 10 {
		return fmt.Errorf("%d bytes, expected at least %d", len(b), size)
	}
	if !bytes.Equal(b[:8], []byte(magic)) {
		return fmt.Errorf("magic %q, expected %q", b[:8], magic)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != Version {
		return fmt.Errorf("version %d, this program knows version %d: %w", v, Version, ErrVersion)
	}
	if len(b) < size {
		return fmt.Errorf("%d bytes, expected at least %d", len(b), size)
	}
	return nil
}

// checkSum compares the checksum in the last 4 bytes of b with the rest.
func checkSum(b []byte) error {
	at := len(b) - 4
	want, got := binary.LittleEndian.Uint32(b[at:]), checksum(b[:at])
	if want != got {
		return fmt.Errorf("checksum at offset %d: expected %08x, found %08x", at, want, got)
	}
	return nil
}
