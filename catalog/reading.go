package catalog

import (
	"fmt"
	"strconv"
	"time"

	"varve/layers"
)

// A reading remembers when an object of a target was last read whole and found
// sound. There is one for each pack, so they are kept shorter than records, and
// one that cannot be decoded is as good as none.

func readingsOf(target layers.ID) string { return "reading/" + target.String() + "/" }

// PutReadings remembers that objects of a target were read at that time.
func (tx *Tx) PutReadings(target layers.ID, objects []string, at time.Time) error {
	value := strconv.AppendInt(nil, at.UnixMilli(), 10)
	for _, object := range objects {
		if err := tx.put([]byte(readingsOf(target)+object), value); err != nil {
			return fmt.Errorf("catalog: reading of %s: %w", object, err)
		}
	}
	return nil
}

// DropReadings forgets readings. One that is not there is no error.
func (tx *Tx) DropReadings(target layers.ID, objects []string) error {
	for _, object := range objects {
		if err := tx.remove([]byte(readingsOf(target) + object)); err != nil {
			return fmt.Errorf("catalog: reading of %s: %w", object, err)
		}
	}
	return nil
}

// Readings calls each with the readings of a target, by their names, until it
// returns false.
func (tx *Tx) Readings(target layers.ID, each func(object string, at time.Time) bool) {
	prefix := readingsOf(target)
	tx.scan([]byte(prefix), func(key, value []byte, err error) bool {
		if err != nil {
			return true
		}
		at, err := strconv.ParseInt(string(value), 10, 64)
		return err != nil || each(string(key[len(prefix):]), time.UnixMilli(at).UTC())
	})
}
