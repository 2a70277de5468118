package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// A partition is a part of a volume that its partition table names.
type partition struct {
	number int   // as Linux counts them, from 1
	at     int64 // bytes
	length int64 // bytes
}

// maxPartitions is how many partitions of a table are looked at, at most: as
// many as a GPT has room for unless asked otherwise (UEFI 2.10, section 5.3.1).
const maxPartitions = 128

// readPartitions returns what the volume's partition table names, by number:
// GPT with sectors of 512 or 4096 bytes, or MBR. A volume without a table, or
// with one that makes no sense, has none. A partition may reach beyond the
// volume's end.
func readPartitions(volume io.ReaderAt) ([]partition, error) {
	for _, sector := range []int64{512, 4096} {
		found, err := readGPT(volume, sector)
		if len(found) > 0 || err != nil {
			return found, err
		}
	}
	return readMBR(volume)
}

// readGPT reads the table whose header is the volume's second sector: UEFI
// 2.10, sections 5.3.2 and 5.3.3.
func readGPT(volume io.ReaderAt, sector int64) ([]partition, error) {
	var header [92]byte
	if ok, err := readWhole(volume, header[:], sector); !ok || string(header[:8]) != "EFI PART" {
		return nil, err
	}
	at := binary.LittleEndian.Uint64(header[72:])
	count := binary.LittleEndian.Uint32(header[80:])
	size := binary.LittleEndian.Uint32(header[84:])
	if at > 1<<40 || size < 128 || size > 4096 {
		return nil, nil
	}
	entries := make([]byte, min(count, maxPartitions)*size)
	if ok, err := readWhole(volume, entries, int64(at)*sector); !ok {
		return nil, err
	}
	var found []partition
	for i := range int(min(count, maxPartitions)) {
		entry := entries[i*int(size):][:48]
		first, last := binary.LittleEndian.Uint64(entry[32:]), binary.LittleEndian.Uint64(entry[40:])
		if bytes.Equal(entry[:16], make([]byte, 16)) || first > last || last > 1<<48 {
			continue
		}
		found = append(found, partition{i + 1, int64(first) * sector, int64(last-first+1) * sector})
	}
	return found, nil
}

// readMBR reads the table in the volume's first sector, with sectors of 512
// bytes, and the chain of logical partitions in an extended one: these count
// from 5.
func readMBR(volume io.ReaderAt) ([]partition, error) {
	table, err := readMBRSector(volume, 0)
	if err != nil || table == nil {
		return nil, err
	}
	var found []partition
	var extended int64
	for i, e := range table {
		switch {
		case e.length == 0 || e.kind == 0 || e.kind == 0xee: // 0xee: stands for a GPT
		case e.isExtended():
			extended = e.at
		default:
			found = append(found, partition{i + 1, e.at, e.length})
		}
	}
	for number, at := 5, extended; at > 0 && number < maxPartitions; number++ {
		table, err := readMBRSector(volume, at)
		if err != nil || table == nil {
			return found, err
		}
		if e := table[0]; e.length > 0 && e.kind != 0 && !e.isExtended() {
			found = append(found, partition{number, at + e.at, e.length})
		}
		next := table[1]
		if !next.isExtended() || next.length == 0 {
			break
		}
		at = extended + next.at
	}
	return found, nil
}

// An mbrEntry is one of the four of such a sector; at and length are in bytes.
type mbrEntry struct {
	kind       byte
	at, length int64
}

// isExtended tells whether it holds logical partitions: for CHS, LBA and Linux.
func (e mbrEntry) isExtended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// readMBRSector returns nil where no such sector is. The boot sector of a file
// system bears the same signature: its entries are no table, since the status
// of one is 0x00 or 0x80.
func readMBRSector(volume io.ReaderAt, at int64) ([]mbrEntry, error) {
	var b [512]byte
	if ok, err := readWhole(volume, b[:], at); !ok || b[510] != 0x55 || b[511] != 0xaa {
		return nil, err
	}
	table := make([]mbrEntry, 4)
	for i := range table {
		e := b[446+16*i:]
		if e[0]&0x7f != 0 {
			return nil, nil
		}
		table[i] = mbrEntry{e[4], int64(binary.LittleEndian.Uint32(e[8:])) * 512, int64(binary.LittleEndian.Uint32(e[12:])) * 512}
	}
	return table, nil
}

// readWhole fills b from the volume; false means that the volume ends before.
func readWhole(volume io.ReaderAt, b []byte, at int64) (ok bool, err error) {
	n, err := volume.ReadAt(b, at)
	if n == len(b) {
		return true, nil
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return false, err
}
