package layers

import (
	"fmt"

	"github.com/google/uuid"
)

// ID names a volume, a layer, a snapshot, a backup or anything else that must
// be unique without asking anybody. It is a UUID of version 7 (RFC 9562,
// section 5.7): its text form has 36 characters and sorts by the time of its
// making. The zero ID names nothing.
type ID [16]byte

// NewID returns an ID that no other call on any host returns.
func NewID() ID {
	id, err := uuid.NewV7()
	if err != nil {
		panic("layers: no randomness: " + err.Error())
	}
	return ID(id)
}

// ParseID reads the text form that String writes, in either case. Any other
// form is an error.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, fmt.Errorf("id %q: not 8-4-4-4-12 hexadecimal digits", s)
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return ID{}, fmt.Errorf("id %q: not 8-4-4-4-12 hexadecimal digits", s)
	}
	return ID(id), nil
}

// String returns the 36 characters of the canonical text form, lower case.
func (id ID) String() string { return uuid.UUID(id).String() }

// IsZero reports whether id is the zero ID, which names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText is String, for JSON; the zero ID is the empty text.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText is ParseID, for JSON; the empty text is the zero ID.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
