package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// maxTable bounds the tables that are looked at, in bytes. Those of a catalog
// have some 100 KiB.
const maxTable = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkTables refuses tables whose end is damaged. Badger slices by the lengths
// that stand there before it checks them, in a goroutine of its own: a panic
// that nobody could recover from.
func checkTables(dir string) error {
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return err
	}
	for _, path := range tables {
		if err := checkTable(path); err != nil {
			return fmt.Errorf("table %s: %w", path, err)
		}
	}
	return nil
}

// checkTable checks the end of a table, which is (Badger v4, table/builder.go,
// "Finish"; integers are big endian):
//
//	… | index | index length 32 | checksum | checksum length 32
//
// The checksum is a Protocol Buffers message with the sum, a CRC-32C of the
// index, as field 2. Field 1, its kind, is left out, as CRC-32C is kind 0.
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // It was only read.
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxTable {
		return fmt.Errorf("corrupt: %d bytes, at most %d", info.Size(), maxTable)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return err
	}
	b, sum, ok := cutCounted(b)
	if !ok {
		return errors.New("corrupt: the length of its checksum is wrong")
	}
	_, index, ok := cutCounted(b)
	if !ok {
		return errors.New("corrupt: the length of its index is wrong")
	}
	want := binary.AppendUvarint([]byte{2 << 3}, uint64(crc32.Checksum(index, castagnoli)))
	if string(sum) != string(want) {
		return fmt.Errorf("corrupt: checksum of its index: expected %x, found %x", want, sum)
	}
	return nil
}

// cutCounted takes a text that is followed by its length off the end of b.
func cutCounted(b []byte) (before, text []byte, ok bool) {
	end := len(b) - 4
	if end < 0 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b[end:])
	if int64(n) > int64(end) {
		return nil, nil, false
	}
	return b[:end-int(n)], b[end-int(n) : end], true
}
