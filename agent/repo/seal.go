package repo

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"github.com/zeebo/blake3"

	"varve/layers"
)

// A suite says how a repository seals. Its values are written.
type suite uint8

const (
	suiteAES  suite = 1 // AES-256-GCM, BLAKE3
	suiteOpen suite = 2 // not encrypted: BLAKE3 as a MAC under keys that anybody can derive
)

const tagSize = 16

// Sections are sealed under their kind, so that none passes for another.
type sectionKind uint8

const (
	sectionFrame     sectionKind = 1
	sectionLeaf      sectionKind = 2
	sectionTrailer   sectionKind = 3
	sectionInventory sectionKind = 4
	sectionSummary   sectionKind = 5
	sectionSpans     sectionKind = 6
	sectionBody      sectionKind = 7
)

// kdf derives 32 bytes for one purpose: docs/format.md 2.5.
func kdf(purpose string, material ...[]byte) (key [32]byte) {
	var m []byte
	for _, part := range material {
		m = append(m, part...)
	}
	blake3.DeriveKey("varve repository 1 "+purpose, m, key[:])
	return key
}

// A keyRef names the key of a volume in one epoch. The zero keyRef is the
// repository's own key, for objects of no volume.
type keyRef struct {
	volume layers.ID
	epoch  uint32
	id     uint64
}

// A volumeKey is what the objects of a volume are sealed with, and the key of
// the ids of its frames.
type volumeKey struct {
	ref   keyRef
	suite suite
	key   [32]byte
	ids   [32]byte
}

// commitment binds an object to the key: a stored text can be valid under two
// keys of AES-GCM, a commitment can't.
func (k *volumeKey) commitment(id objectID) [32]byte { return kdf("commitment", k.key[:], id[:]) }

// A sealer seals and opens the sections of one object. It is safe for
// concurrent use.
type sealer struct {
	aead cipher.AEAD
	id   objectID
}

func (k *volumeKey) sealer(id objectID) *sealer {
	key := kdf("object", k.key[:], id[:])
	if k.suite == suiteOpen {
		return &sealer{aead: &macAEAD{key: key}, id: id}
	}
	return &sealer{aead: newGCM(key[:]), id: id}
}

func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("repo: AES key: " + err.Error()) // its length is fixed
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("repo: GCM: " + err.Error())
	}
	return aead
}

// bind returns the nonce and the associated data of a section. header is the
// part of the object's header that the section vouches for; nil for those that
// are read without it.
func (s *sealer) bind(kind sectionKind, n uint32, header []byte) (nonce [12]byte, ad []byte) {
	binary.LittleEndian.PutUint32(nonce[:], n)
	ad = make([]byte, 28, 28+len(header))
	binary.LittleEndian.PutUint16(ad, Version)
	ad[2] = byte(kind)
	copy(ad[4:], s.id[:])
	binary.LittleEndian.PutUint32(ad[24:], n)
	return nonce, append(ad, header...)
}

// seal appends the sealed text to dst, tagSize bytes longer than it is.
func (s *sealer) seal(dst, text []byte, kind sectionKind, n uint32, header []byte) []byte {
	nonce, ad := s.bind(kind, n, header)
	return s.aead.Seal(dst, nonce[:], text, ad)
}

// open checks and opens a sealed text in its own bytes.
func (s *sealer) open(stored []byte, kind sectionKind, n uint32, header []byte) ([]byte, error) {
	nonce, ad := s.bind(kind, n, header)
	text, err := s.aead.Open(stored[:0], nonce[:], stored, ad)
	if err != nil {
		return nil, errTag
	}
	return text, nil
}

var errTag = errors.New("authentication failed: not what was written there")

// macAEAD is the suite without encryption: the text stays as it is, the tag is
// a keyed hash over the nonce, the associated data and the text.
type macAEAD struct{ key [32]byte }

func (m *macAEAD) NonceSize() int { return 12 }
func (m *macAEAD) Overhead() int  { return tagSize }

func (m *macAEAD) tag(nonce, text, ad []byte) []byte {
	h := newKeyed(m.key)
	h.Write(nonce)
	h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(ad))))
	h.Write(ad)
	h.Write(text)
	return h.Sum(nil)[:tagSize]
}

func (m *macAEAD) Seal(dst, nonce, text, ad []byte) []byte {
	tag := m.tag(nonce, text, ad)
	return append(append(dst, text...), tag...)
}

func (m *macAEAD) Open(dst, nonce, stored, ad []byte) ([]byte, error) {
	if len(stored) < tagSize {
		return nil, errTag
	}
	text, tag := stored[:len(stored)-tagSize], stored[len(stored)-tagSize:]
	if subtle.ConstantTimeCompare(tag, m.tag(nonce, text, ad)) != 1 {
		return nil, errTag
	}
	return append(dst, text...), nil
}

func newKeyed(key [32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("repo: BLAKE3 key: " + err.Error()) // its length is fixed
	}
	return h
}

// A frameID is the keyed hash of what a section holds before compression.
type frameID [16]byte

// sectionID hashes with a hasher of the domain's id key, which it resets.
func sectionID(h *blake3.Hasher, text []byte) (id frameID) {
	h.Reset()
	h.Write(text)
	var sum [32]byte
	copy(id[:], h.Sum(sum[:0]))
	return id
}
