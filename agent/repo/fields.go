package repo

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"varve/layers"
)

// fields are tagged values, written in the order of their tags; empty and zero
// ones are left out: docs/format.md 2.8.
type fields map[uint64][]byte

func (f fields) setText(tag uint64, s string)    { f[tag] = []byte(s) }
func (f fields) setID(tag uint64, id layers.ID)  { f.setIDs(tag, []layers.ID{id}) }
func (f fields) setTime(tag uint64, t time.Time) { f.setNumber(tag, unixMilli(t)) }
func (f fields) text(tag uint64) string          { return string(f[tag]) }
func (f fields) time(tag uint64) (time.Time, error) {
	ms, err := f.number(tag)
	return fromMilli(ms), err
}

func (f fields) setIDs(tag uint64, ids []layers.ID) {
	var b []byte
	for _, id := range ids {
		if !id.IsZero() {
			b = append(b, id[:]...)
		}
	}
	f[tag] = b
}

func (f fields) setNumber(tag uint64, v int64) {
	if v != 0 {
		f[tag] = binary.LittleEndian.AppendUint64(nil, uint64(v))
	}
}

// number is 0 if there is no such field.
func (f fields) number(tag uint64) (int64, error) {
	switch b := f[tag]; len(b) {
	case 0:
		return 0, nil
	case 8:
		return int64(binary.LittleEndian.Uint64(b)), nil
	}
	return 0, fmt.Errorf("field %d is no number", tag)
}

// ids returns the IDs of a field, none if it is not there.
func (f fields) ids(tag uint64, limit int) ([]layers.ID, error) {
	b := f[tag]
	if len(b)%16 != 0 || len(b)/16 > limit {
		return nil, fmt.Errorf("field %d has %d bytes, not 16 for each of at most %d ids", tag, len(b), limit)
	}
	var ids []layers.ID
	for id := range slices.Chunk(b, 16) {
		ids = append(ids, layers.ID(id))
	}
	return ids, nil
}

// id is the zero ID if there is no such field.
func (f fields) id(tag uint64) (layers.ID, error) {
	ids, err := f.ids(tag, 1)
	if err != nil || len(ids) == 0 {
		return layers.ID{}, err
	}
	return ids[0], nil
}

func (f fields) append(b []byte) []byte {
	for _, tag := range slices.Sorted(maps.Keys(f)) {
		if len(f[tag]) == 0 {
			continue
		}
		b = binary.AppendUvarint(b, tag)
		b = binary.AppendUvarint(b, uint64(len(f[tag])))
		b = append(b, f[tag]...)
	}
	return b
}

// parseFields keeps slices of b.
func parseFields(b []byte) (fields, error) {
	f := make(fields)
	d := decoder{rest: b}
	for last := uint64(0); len(d.rest) > 0; {
		tag := d.uvarint()
		content := d.bytes(d.count(1, "length of a field"))
		if d.err == nil && tag <= last {
			d.failf("field %d after field %d", tag, last)
		}
		if d.err == nil && len(content) == 0 {
			d.failf("field %d is empty", tag)
		}
		f[tag], last = content, tag
	}
	return f, d.end()
}

// appendPairs writes a map as field 21 has it.
func appendPairs(b []byte, pairs map[string]string) []byte {
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		for _, s := range []string{key, pairs[key]} {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

func parsePairs(b []byte) (map[string]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	pairs := make(map[string]string)
	d := decoder{rest: b}
	for last, first := "", true; len(d.rest) > 0; first = false {
		key := string(d.bytes(d.count(1, "length of a key")))
		value := string(d.bytes(d.count(1, "length of a value")))
		if d.err == nil && !first && key <= last {
			d.failf("key %q after key %q", key, last)
		}
		pairs[key], last = value, key
	}
	return pairs, d.end()
}

// unixMilli is 0 for the zero time.
func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
