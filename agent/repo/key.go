package repo

import (
	"errors"
	"fmt"

	"varve/layers"
)

// A Key opens a repository. The zero Key opens one that is not encrypted.
type Key struct {
	// Passphrase is what somebody typed or keeps: a passphrase, or the text of
	// a RecoveryKey.
	Passphrase string
	// KeyFile is the content of a key file, all of it: at least MinKeyFile
	// bytes, which must be random, since a guess at them costs nothing.
	KeyFile string
	// Slot is the key slot that is tried first, so that one request and one
	// derivation are enough however many slots there are. Zero: not known.
	Slot layers.ID
}

// A key file has at least MinKeyFile and at most MaxKeyFile bytes.
const (
	MinKeyFile = 32
	MaxKeyFile = 64 << 10
)

// empty reports whether the key can open nothing.
func (k Key) empty() bool { return k.Passphrase == "" && k.KeyFile == "" }

// A slotSecret is what one kind of key slot is opened with.
type slotSecret struct {
	kind SlotKind
	text string
}

// secrets are what the key may be meant as, the cheap ones to try first.
func (k Key) secrets() []slotSecret {
	var all []slotSecret
	if k.KeyFile != "" {
		all = append(all, slotSecret{SlotKeyFile, k.KeyFile})
	}
	if k.Passphrase == "" {
		return all
	}
	if recovery, err := ParseRecoveryKey(k.Passphrase); err == nil {
		all = append(all, slotSecret{SlotRecovery, string(recovery[:])})
	}
	return append(all, slotSecret{SlotPassphrase, k.Passphrase})
}

// slotSecret is what a new slot for the key is made with.
func (k Key) slotSecret() (slotSecret, error) {
	switch {
	case k.Passphrase != "" && k.KeyFile != "":
		return slotSecret{}, errors.New("a passphrase and a key file were given: each makes a key slot of its own, so give one of them")
	case k.KeyFile != "":
		return slotSecret{SlotKeyFile, k.KeyFile}, checkKeyFile(k.KeyFile)
	case k.Passphrase != "":
		return k.secrets()[0], nil
	}
	return slotSecret{}, errors.New("neither a passphrase nor a key file was given")
}

// checkKeyFile refuses what cannot be a key: too short, or one byte repeated.
func checkKeyFile(content string) error {
	if n := len(content); n < MinKeyFile || n > MaxKeyFile {
		return fmt.Errorf("%w: a key file has %d to %d bytes, all random, and this one has %d; make one with: head -c %d /dev/urandom > FILE",
			ErrKey, MinKeyFile, MaxKeyFile, n, MinKeyFile)
	}
	for i := range len(content) {
		if content[i] != content[0] {
			return nil
		}
	}
	return fmt.Errorf("%w: the key file repeats one byte; make one with: head -c %d /dev/urandom > FILE", ErrKey, MinKeyFile)
}
