package repo

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"varve/layers"
)

const (
	headMagic = "VARVREPO"
	headFixed = 64 // bytes before the label
	headSize  = headFixed + tagSize + 4
	maxLabel  = 255
	headLimit = headSize + maxLabel

	maxContainers = 256
)

// head is the content of the object `repo`: docs/format.md 2.2.
type head struct {
	suite       suite
	level       Compression // of backups that ask for none
	conditional uint8
	id          layers.ID
	created     time.Time
	containers  uint16
	label       string
}

// append adds the head with its MAC under key.
func (h *head) append(b []byte, key [32]byte) []byte {
	start := len(b)
	b = append(b, headMagic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, uint16(headSize+len(h.label)))
	b = append(b, byte(h.suite), byte(h.level), h.conditional, 0)
	b = append(b, h.id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(unixMilli(h.created)))
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint16(b, h.containers)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.label)))
	b = append(b, make([]byte, 12)...)
	b = append(b, h.label...)
	b = append(b, headMAC(b[start:], key)...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

func headMAC(b []byte, key [32]byte) []byte {
	h := newKeyed(key)
	h.Write(b)
	return h.Sum(nil)[:tagSize]
}

// verify checks the MAC of an encoded head once the key is known: without it
// whoever writes to the store could switch encryption off.
func verifyHead(b []byte, key [32]byte) error {
	at := len(b) - tagSize - 4
	if subtle.ConstantTimeCompare(b[at:at+tagSize], headMAC(b[:at], key)) != 1 {
		return fmt.Errorf("MAC at offset %d does not fit the key", at)
	}
	return nil
}

// parseHead reads a head; its MAC is for verifyHead.
func parseHead(b []byte) (*head, error) {
	if err := checkFront(b, headMagic, headSize); err != nil {
		return nil, err
	}
	if n := int(binary.LittleEndian.Uint16(b[10:])); n != len(b) {
		return nil, fmt.Errorf("%d bytes, says %d", len(b), n)
	}
	if err := checkSum(b); err != nil {
		return nil, err
	}
	h := &head{
		suite:       suite(b[12]),
		level:       Compression(b[13]),
		conditional: b[14],
		id:          layers.ID(b[16:32]),
		created:     fromMilli(int64(binary.LittleEndian.Uint64(b[32:]))),
		containers:  binary.LittleEndian.Uint16(b[48:]),
		label:       string(b[headFixed : len(b)-tagSize-4]),
	}
	if required := binary.LittleEndian.Uint64(b[40:]); required != 0 {
		return nil, fmt.Errorf("needs features %#x that this program does not have: %w", required, ErrVersion)
	}
	if h.suite != suiteAES && h.suite != suiteOpen {
		return nil, fmt.Errorf("unknown suite %d: %w", h.suite, ErrVersion)
	}
	if b[15] != 0 || binary.LittleEndian.Uint64(b[52:])|uint64(binary.LittleEndian.Uint32(b[60:])) != 0 {
		return nil, errReserved
	}
	if n := int(binary.LittleEndian.Uint16(b[50:])); n != len(h.label) {
		return nil, fmt.Errorf("label of %d bytes, says %d", len(h.label), n)
	}
	return h, h.validate()
}

func (h *head) validate() error {
	switch {
	case h.id.IsZero():
		return errors.New("no repository ID")
	case !h.level.known():
		return fmt.Errorf("unknown compression level %d: %w", uint8(h.level), ErrVersion)
	case h.conditional > 2:
		return fmt.Errorf("unknown answer %d about conditional writes", h.conditional)
	case h.containers == 0 || h.containers > maxContainers:
		return fmt.Errorf("%d containers, expected 1 to %d", h.containers, maxContainers)
	case len(h.label) > maxLabel || !utf8.ValidString(h.label):
		return fmt.Errorf("the label is not UTF-8 of at most %d bytes", maxLabel)
	}
	return nil
}
