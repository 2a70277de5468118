package repo

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
)

// A RecoveryKey is 160 random bits that open a repository, in a form that can
// be printed and typed:
//
//	7K3M9-QW2RX-0ZT5C-…     8 groups of 4 digits and a check digit
//
// The digits are Crockford's base 32: no I, L, O or U; small letters, and I, L
// and O for the digits that they look like, are read too. The check digit finds
// every wrong digit, every two digits of a group and every two groups that were
// swapped, and so says which group to look at.
type RecoveryKey [recoveryGroups * 4 * 5 / 8]byte

const (
	recoveryGroups = 8
	recoveryDigits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// errNoRecoveryKey means a text that does not even look like a recovery key.
var errNoRecoveryKey = errors.New("not a recovery key: those are 8 groups of 5 letters and digits")

// NewRecoveryKey draws one.
func NewRecoveryKey() (k RecoveryKey) {
	rand.Read(k[:]) // never fails: crypto/rand
	return k
}

// String returns the key in the form to be typed.
func (k RecoveryKey) String() string {
	groups := make([]string, recoveryGroups)
	for g := range groups {
		var digits [4]byte
		for i := range digits {
			digits[i] = k.digit(4*g + i)
		}
		text := make([]byte, 0, 5)
		for _, d := range append(digits[:], checkDigit(g, digits)) {
			text = append(text, recoveryDigits[d])
		}
		groups[g] = string(text)
	}
	return strings.Join(groups, "-")
}

// digit returns the i-th 5 bits, the highest first.
func (k *RecoveryKey) digit(i int) byte {
	at, shift := i*5/8, i*5%8
	word := uint16(k[at]) << 8
	if at+1 < len(k) {
		word |= uint16(k[at+1])
	}
	return byte(word >> (11 - shift) & 31)
}

// checkDigit is a polynomial over the field of 32 elements: the number of the
// group and its digits, times the powers 5 to 1 of an element that has no two
// of them alike.
func checkDigit(group int, digits [4]byte) byte {
	sum := byte(group)
	for _, d := range digits {
		sum = double(sum) ^ d
	}
	return double(sum)
}

// double multiplies by the polynomial x, modulo x^5 + x^2 + 1.
func double(v byte) byte {
	v <<= 1
	if v >= 32 {
		v ^= 0x25
	}
	return v
}

// ParseRecoveryKey reads what String wrote, as a person types it: in capitals
// or not, with or without dashes and spaces. Lines that begin with # are
// remarks. Errors name the group that is wrong and do not quote it.
func ParseRecoveryKey(text string) (k RecoveryKey, err error) {
	groups, err := recoveryText(text)
	if err != nil {
		return k, err
	}
	var word uint64
	for g, group := range groups {
		var digits [5]byte
		for i := range digits {
			if len(group) != len(digits) {
				return RecoveryKey{}, fmt.Errorf("group %d of the recovery key has %d letters and digits, not 5", g+1, len(group))
			}
			digits[i] = byte(strings.IndexByte(recoveryDigits, group[i]))
		}
		if checkDigit(g, [4]byte(digits[:4])) != digits[4] {
			return RecoveryKey{}, fmt.Errorf("group %d of the recovery key is mistyped", g+1)
		}
		for _, d := range digits[:4] {
			word = word<<5 | uint64(d)
		}
		if g%2 == 1 { // 8 digits are 5 bytes
			for i := range 5 {
				k[g/2*5+i] = byte(word >> (32 - 8*i))
			}
			word = 0
		}
	}
	return k, nil
}

// recoveryText returns the groups of digits in a text that looks like a
// recovery key.
func recoveryText(text string) ([]string, error) {
	if len(text) > MaxKeyFile {
		return nil, errNoRecoveryKey
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	text = strings.NewReplacer("O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(b.String()))
	groups := strings.FieldsFunc(text, func(r rune) bool { return r == '-' || r == ' ' || r == '\t' || r == '\r' || r == '\n' })
	all := strings.Join(groups, "")
	if strings.Trim(all, recoveryDigits) != "" {
		return nil, errNoRecoveryKey
	}
	if len(all) == 5*recoveryGroups {
		groups = groups[:0]
		for ; all != ""; all = all[5:] {
			groups = append(groups, all[:5])
		}
	}
	if len(groups) != recoveryGroups {
		return nil, errNoRecoveryKey
	}
	return groups, nil
}
