package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// Quotas holds the limits on what may be there.
var Quotas = Single[Quota]{"quota"}

// A Single is the one record of its type. It is a name, not the record.
type Single[T any] struct{ name string }

// Get returns the record, or the zero one if none was written. One that cannot
// be decoded is a *RecordError.
func (s Single[T]) Get(tx *Tx) (T, error) {
	var record, none T
	value, err := tx.get([]byte(s.name))
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &record)
	}
	if err != nil {
		return none, &RecordError{Key: s.name, Err: err}
	}
	return record, nil
}

// Put writes the record. Two transactions that put it meet, so that one comes
// after the other.
func (s Single[T]) Put(tx *Tx, record T) error {
	value, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("catalog: encode %s: %w", s.name, err)
	}
	return tx.put([]byte(s.name), value)
}
