package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"varve/layers"
)

// The tables of a catalog. A record's key is its ID.
var (
	Volumes     = Table[Volume]{"volume", func(v *Volume) layers.ID { return v.ID }}
	Snapshots   = Table[Snapshot]{"snapshot", func(s *Snapshot) layers.ID { return s.ID }}
	Backups     = Table[Backup]{"backup", func(b *Backup) layers.ID { return b.ID }}
	Claims      = Table[Claim]{"claim", func(c *Claim) layers.ID { return c.ID }}
	Attachments = Table[Attachment]{"attachment", func(a *Attachment) layers.ID { return a.ID }}
	Targets     = Table[Target]{"target", func(t *Target) layers.ID { return t.ID }}
	Operations  = Table[Operation]{"operation", func(o *Operation) layers.ID { return o.ID }}
	Checkpoints = Table[Checkpoint]{"checkpoint", func(c *Checkpoint) layers.ID { return c.Operation }}
)

// A Table keeps the records of one type. It is a name, not the records: these
// are seen through a Tx.
type Table[T any] struct {
	name string
	id   func(*T) layers.ID
}

// A RecordError says that one record cannot be used. It does not concern any
// other record.
type RecordError struct {
	Key string
	ID  layers.ID // zero if the key holds none
	Err error
}

// Error names the record.
func (e *RecordError) Error() string { return fmt.Sprintf("catalog record %s: %v", e.Key, e.Err) }

// Unwrap returns what is wrong with the record.
func (e *RecordError) Unwrap() error { return e.Err }

// Get returns the record. One that is not there is an error that wraps
// fs.ErrNotExist, one that cannot be decoded a *RecordError.
func (t Table[T]) Get(tx *Tx, id layers.ID) (T, error) {
	var none T
	value, err := tx.get(t.key(id))
	if errors.Is(err, fs.ErrNotExist) {
		return none, fmt.Errorf("%s %s: %w", t.name, id, fs.ErrNotExist)
	}
	if err != nil {
		return none, &RecordError{string(t.key(id)), id, err}
	}
	return t.decode(t.key(id), value)
}

// Put writes the record, whether there was one or not. A record without an ID
// or of more than MaxRecord bytes is refused.
func (t Table[T]) Put(tx *Tx, record T) error {
	id := t.id(&record)
	if id.IsZero() {
		return fmt.Errorf("catalog: a %s without an id", t.name)
	}
	value, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("catalog: encode %s %s: %w", t.name, id, err)
	}
	if len(value) > MaxRecord {
		return fmt.Errorf("%s %s: %d bytes to remember, at most %d: shorten its texts", t.name, id, len(value), MaxRecord)
	}
	return tx.put(t.key(id), value)
}

// Delete removes the record, damaged or not. One that is not there is no
// error.
func (t Table[T]) Delete(tx *Tx, id layers.ID) error { return tx.remove(t.key(id)) }

// All yields the records, oldest first. In the place of one that cannot be
// decoded comes its *RecordError with a zero record, and the sequence goes on.
func (t Table[T]) All(tx *Tx) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		tx.scan([]byte(t.name+"/"), func(key, value []byte, err error) bool {
			if err != nil {
				var none T
				id, _ := t.parseKey(key) // The zero ID if it holds none.
				return yield(none, &RecordError{string(key), id, err})
			}
			return yield(t.decode(key, value))
		})
	}
}

func (t Table[T]) key(id layers.ID) []byte { return []byte(t.name + "/" + id.String()) }

func (t Table[T]) parseKey(key []byte) (layers.ID, error) {
	return layers.ParseID(string(key[len(t.name)+1:]))
}

// decode reads a record and holds it against its key.
func (t Table[T]) decode(key, value []byte) (T, error) {
	var record, none T
	id, err := t.parseKey(key)
	if err == nil {
		err = json.Unmarshal(value, &record)
	}
	if err == nil && t.id(&record) != id {
		err = fmt.Errorf("holds the id %s", t.id(&record))
	}
	if err != nil {
		return none, &RecordError{string(key), id, err}
	}
	return record, nil
}
