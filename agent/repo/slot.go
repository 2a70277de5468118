package repo

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/crypto/argon2"

	"varve/layers"
)

const (
	slotMagic      = "VARVSLOT"
	slotSize       = 172
	slotBound      = 120 // the part that the wrapped key vouches for
	slotPassphrase = 1

	maxPasses  = 64
	maxMemory  = 1 << 21 // KiB
	maxThreads = 64
)

// argonCost is what a guess at the passphrase costs.
type argonCost struct {
	passes  uint32
	memory  uint32 // KiB
	threads uint8
}

// RFC 9106, section 4, the second recommended option: the first wants 2 GiB,
// and 64 MiB stay below what a backup needs anyway.
var defaultCost = argonCost{passes: 3, memory: 64 << 10, threads: 4}

// A slot keeps the master key under a passphrase: docs/format.md 2.3.
type slot struct {
	id, repository layers.ID
	created        time.Time
	cost           argonCost
	salt           [32]byte
	nonce          [12]byte
	wrapped        [48]byte
}

// newSlot wraps the master key.
func newSlot(id, repository layers.ID, passphrase string, cost argonCost, master [32]byte) *slot {
	s := &slot{id: id, repository: repository, created: time.Now(), cost: cost}
	rand.Read(s.salt[:])
	rand.Read(s.nonce[:])
	aead := newGCM(s.stretch(passphrase))
	aead.Seal(s.wrapped[:0], s.nonce[:], master[:], s.bound())
	return s
}

// open unwraps the master key; ok is false if the passphrase is another one.
func (s *slot) open(passphrase string) (master [32]byte, ok bool) {
	aead := newGCM(s.stretch(passphrase))
	text, err := aead.Open(nil, s.nonce[:], s.wrapped[:], s.bound())
	copy(master[:], text)
	return master, err == nil
}

func (s *slot) stretch(passphrase string) []byte {
	return argon2.IDKey([]byte(passphrase), s.salt[:], s.cost.passes, s.cost.memory, s.cost.threads, 32)
}

func (s *slot) bound() []byte { return s.append(nil)[:slotBound] }

func (s *slot) append(b []byte) []byte {
	start := len(b)
	b = append(b, slotMagic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, slotSize)
	b = append(b, slotPassphrase, s.cost.threads, 0, 0)
	b = append(b, s.id[:]...)
	b = append(b, s.repository[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(unixMilli(s.created)))
	b = binary.LittleEndian.AppendUint32(b, s.cost.passes)
	b = binary.LittleEndian.AppendUint32(b, s.cost.memory)
	b = append(b, s.salt[:]...)
	b = append(b, s.nonce[:]...)
	b = append(b, make([]byte, 12)...)
	b = append(b, s.wrapped[:]...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

func parseSlot(b []byte) (*slot, error) {
	if err := checkFront(b, slotMagic, slotSize); err != nil {
		return nil, err
	}
	if n := int(binary.LittleEndian.Uint16(b[10:])); n != len(b) || n != slotSize {
		return nil, fmt.Errorf("%d bytes, says %d, expected %d", len(b), n, slotSize)
	}
	if err := checkSum(b); err != nil {
		return nil, err
	}
	if b[12] != slotPassphrase {
		return nil, fmt.Errorf("unknown kind of key slot %d: %w", b[12], ErrVersion)
	}
	s := &slot{
		id:         layers.ID(b[16:32]),
		repository: layers.ID(b[32:48]),
		created:    fromMilli(int64(binary.LittleEndian.Uint64(b[48:]))),
		cost: argonCost{
			passes:  binary.LittleEndian.Uint32(b[56:]),
			memory:  binary.LittleEndian.Uint32(b[60:]),
			threads: b[13],
		},
		salt:    [32]byte(b[64:96]),
		nonce:   [12]byte(b[96:108]),
		wrapped: [48]byte(b[120:168]),
	}
	if b[14]|b[15] != 0 || [12]byte(b[108:120]) != [12]byte{} {
		return nil, errReserved
	}
	return s, s.cost.validate()
}

// validate keeps a forged slot from taking all memory or all time.
func (c argonCost) validate() error {
	if c.passes < 1 || c.passes > maxPasses || c.memory < 8 || c.memory > maxMemory || c.threads < 1 || c.threads > maxThreads {
		return fmt.Errorf("argon2id with %d passes, %d KiB, %d threads is out of bounds", c.passes, c.memory, c.threads)
	}
	return nil
}
