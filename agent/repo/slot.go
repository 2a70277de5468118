package repo

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"varve/layers"
)

const (
	slotMagic   = "VARVSLOT"
	slotFixed   = 120                          // bytes before the label
	slotSize    = slotFixed + 48 + tagSize + 4 // without a label
	maxSlotText = 64                           // bytes of a label
	slotLimit   = slotSize + maxSlotText       // of the object
)

// A SlotKind says what opens a key slot. Its values are written.
type SlotKind uint8

const (
	SlotPassphrase SlotKind = 1 // stretched by argon2id
	SlotKeyFile    SlotKind = 2
	SlotRecovery   SlotKind = 6 // a RecoveryKey
)

func (k SlotKind) String() string {
	switch k {
	case SlotPassphrase:
		return "passphrase"
	case SlotKeyFile:
		return "key file"
	case SlotRecovery:
		return "recovery key"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// argonCost is what a guess at a passphrase costs; zero for the other kinds,
// which nobody can guess.
type argonCost struct {
	passes  uint32
	memory  uint32 // KiB
	threads uint8
}

// RFC 9106, section 4, the second recommended option: the first wants 2 GiB,
// and 64 MiB stay below what a backup needs anyway.
var defaultCost = argonCost{passes: 3, memory: 64 << 10, threads: 4}

// Bounds on what a slot may ask for. Whoever writes to the store can forge one,
// and a daemon that serves volumes must not be killed or held up by it: at most
// 256 MiB for one guess at a time, and for all guesses of one opening about 8
// seconds of a core.
const (
	maxPasses  = 16
	maxMemory  = 1 << 18 // KiB
	maxThreads = 16
	maxStretch = 1 << 22 // KiB times passes
)

// validate keeps a forged slot from taking all memory or all time.
func (c argonCost) validate() error {
	if c.passes < 1 || c.passes > maxPasses || c.memory < 8 || c.memory > maxMemory || c.threads < 1 || c.threads > maxThreads {
		return fmt.Errorf("argon2id with %d passes, %d KiB, %d threads is out of bounds", c.passes, c.memory, c.threads)
	}
	return nil
}

// total is what one guess costs, in KiB times passes.
func (c argonCost) total() int64 { return int64(c.passes) * int64(c.memory) }

// A slot keeps the master key under a secret: docs/format.md 2.3.
type slot struct {
	id, repository layers.ID
	kind           SlotKind
	label          string // for people
	created        time.Time
	cost           argonCost // of a passphrase
	salt           [32]byte  // its second half may be a mark: rotation.go
	nonce          [12]byte
	wrapped        [48]byte
	mac            [tagSize]byte
}

// wrap makes s keep the master key under the secret, whose kind s has, in the
// place of the slot old; the zero ID is none.
func (s *slot) wrap(secret slotSecret, master [32]byte, old layers.ID) {
	rand.Read(s.salt[:]) // never fails: crypto/rand
	if !old.IsZero() {
		mark := markOf(master, old)
		copy(s.salt[saltRandom:], mark[:])
	}
	rand.Read(s.nonce[:])
	newGCM(s.key(secret)).Seal(s.wrapped[:0], s.nonce[:], master[:], s.bound())
	copy(s.mac[:], s.sum(master))
}

// open unwraps the master key; ok is false if the slot is not for this secret.
func (s *slot) open(secret slotSecret) (master [32]byte, ok bool) {
	if s.kind != secret.kind {
		return master, false
	}
	text, err := newGCM(s.key(secret)).Open(nil, s.nonce[:], s.wrapped[:], s.bound())
	if err != nil {
		return master, false
	}
	copy(master[:], text)
	return master, s.genuine(master)
}

// genuine reports whether somebody who has the master key made the slot.
func (s *slot) genuine(master [32]byte) bool {
	return subtle.ConstantTimeCompare(s.mac[:], s.sum(master)) == 1
}

// sum is the MAC over all that stands before it.
func (s *slot) sum(master [32]byte) []byte {
	b := s.append(nil)
	return headMAC(b[:len(b)-tagSize-4], kdf("slot", master[:]))
}

// key is what the master key is wrapped with.
func (s *slot) key(secret slotSecret) []byte {
	var key [32]byte
	switch s.kind {
	case SlotPassphrase:
		return stretchPassphrase(secret.text, s.salt[:], s.cost)
	case SlotKeyFile:
		key = kdf("slot key file", s.salt[:], []byte(secret.text))
	case SlotRecovery:
		key = kdf("slot recovery key", s.salt[:], []byte(secret.text))
	default:
		panic("repo: key slot of " + s.kind.String())
	}
	return key[:]
}

// bound is the part that the wrapped key vouches for.
func (s *slot) bound() []byte { return s.append(nil)[:slotFixed+len(s.label)] }

func (s *slot) append(b []byte) []byte {
	start := len(b)
	b = append(b, slotMagic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, uint16(slotSize+len(s.label)))
	b = append(b, byte(s.kind), s.cost.threads, byte(len(s.label)), 0)
	b = append(b, s.id[:]...)
	b = append(b, s.repository[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(unixMilli(s.created)))
	b = binary.LittleEndian.AppendUint32(b, s.cost.passes)
	b = binary.LittleEndian.AppendUint32(b, s.cost.memory)
	b = append(b, s.salt[:]...)
	b = append(b, s.nonce[:]...)
	b = append(b, make([]byte, 12)...)
	b = append(b, s.label...)
	b = append(b, s.wrapped[:]...)
	b = append(b, s.mac[:]...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

func parseSlot(b []byte) (*slot, error) {
	if err := checkFront(b, slotMagic, slotSize); err != nil {
		return nil, err
	}
	if n := int(binary.LittleEndian.Uint16(b[10:])); n != len(b) {
		return nil, fmt.Errorf("%d bytes, says %d", len(b), n)
	}
	if err := checkSum(b); err != nil {
		return nil, err
	}
	end := len(b) - (slotSize - slotFixed) // of the label
	s := &slot{
		kind:       SlotKind(b[12]),
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
		label:   string(b[slotFixed:end]),
		wrapped: [48]byte(b[end : end+48]),
		mac:     [tagSize]byte(b[end+48 : end+48+tagSize]),
	}
	switch {
	case b[15] != 0 || [12]byte(b[108:120]) != [12]byte{}:
		return nil, errReserved
	case int(b[14]) != len(s.label):
		return nil, fmt.Errorf("label of %d bytes, says %d", len(s.label), b[14])
	}
	return s, s.validate()
}

func (s *slot) validate() error {
	if err := checkSlotLabel(s.label); err != nil {
		return err
	}
	switch s.kind {
	case SlotPassphrase:
		return s.cost.validate()
	case SlotKeyFile, SlotRecovery:
		if s.cost != (argonCost{}) {
			return errors.New("argon2id for what is no passphrase")
		}
		return nil
	}
	return fmt.Errorf("unknown kind of key slot %d: %w", s.kind, ErrVersion)
}

func checkSlotLabel(label string) error {
	if len(label) > maxSlotText || !utf8.ValidString(label) {
		return fmt.Errorf("the label of a key slot is UTF-8 of at most %d bytes", maxSlotText)
	}
	return nil
}
