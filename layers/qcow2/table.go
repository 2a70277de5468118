package qcow2

import (
	"encoding/binary"
	"fmt"

	"varve/layers"
)

// Bits of an entry: "L1 table entry", "L2 table entry", "Standard Cluster
// Descriptor".
const (
	entryOffset     = uint64(1<<56 - 1<<9) // of L1, and of a standard cluster
	entryCopied     = uint64(1 << 63)      // the refcount is one
	entryCompressed = uint64(1 << 62)
	entryZero       = uint64(1) // of L2, version 3
)

// A kind is where the bytes of a cluster are.
type kind uint8

const (
	absent kind = iota
	zeroed
	stored
	packed // compressed
)

func (k kind) layer() layers.Kind {
	switch k {
	case zeroed:
		return layers.Zero
	case stored, packed:
		return layers.Data
	}
	return layers.Absent
}

// A run is n bytes of the disk that are found in one way.
type run struct {
	kind  kind
	n     int64  // bytes
	host  int64  // stored: where in the file they are
	entry uint64 // packed: the L2 entry of their cluster
}

// run looks up what is at off and how far it goes, at most to end and to the
// end of the L2 table.
func (m *Image) run(off, end int64) (run, error) {
	span, size := m.head.span(), m.head.clusterSize()
	end = min(end, off-off%span+span)
	table, err := m.table(off / span)
	if err != nil {
		return run{}, err
	}
	if table == nil {
		return run{kind: absent, n: end - off}, nil
	}
	found, err := m.cluster(table, off)
	if err != nil {
		return run{}, err
	}
	found.n = min(size-off%size, end-off)
	for found.kind != packed && off+found.n < end {
		next, err := m.cluster(table, off+found.n)
		if err != nil || next.kind != found.kind || found.kind == stored && next.host != found.host+found.n {
			break // an error comes again when that cluster is read
		}
		found.n += min(size, end-off-found.n)
	}
	return found, nil
}

// table returns an L2 table, or nil if there is none.
func (m *Image) table(i int64) ([]byte, error) {
	entry := m.l1[i]
	if entry&^(entryOffset|entryCopied) != 0 {
		return nil, corruptf("L1 entry %d is %#x", i, entry)
	}
	off := entry & entryOffset
	if off == 0 {
		return nil, nil
	}
	table, err := m.tables.get(off)
	if err != nil {
		return nil, fmt.Errorf("L2 table %d: %w", i, err)
	}
	return table, nil
}

// readTable fills the cache of tables.
func (m *Image) readTable(off uint64) ([]byte, error) {
	if err := m.holds(int64(off), m.head.clusterSize()); err != nil {
		return nil, err
	}
	p := make([]byte, m.head.clusterSize())
	_, err := readFull(m.r, p, int64(off))
	return p, err
}

// cluster takes the entry of the cluster with the byte at off.
func (m *Image) cluster(table []byte, off int64) (run, error) {
	size := m.head.clusterSize()
	entry := be64(table[off%m.head.span()/size*8:])
	at := off - off%size // where the cluster begins on the disk
	if entry&entryCompressed != 0 {
		if entry&entryCopied != 0 {
			return run{}, corruptf("L2 entry of byte %d is %#x", off, entry)
		}
		return run{kind: packed, entry: entry}, nil
	}
	host := int64(entry & entryOffset)
	switch {
	case entry&^(entryOffset|entryCopied|entryZero) != 0, entry&entryZero != 0 && m.head.version == 2:
		return run{}, corruptf("L2 entry of byte %d is %#x", off, entry)
	case entry&entryZero != 0:
		return run{kind: zeroed}, nil
	case host == 0:
		return run{kind: absent}, nil
	}
	// The last cluster of the disk may be cut off in the file.
	if err := m.holds(host, min(size, m.head.size-at)); err != nil {
		return run{}, fmt.Errorf("L2 entry of byte %d: %w", off, err)
	}
	return run{kind: stored, host: host + off%size}, nil
}

// holds checks that the file has n bytes at a cluster's place.
func (m *Image) holds(off, n int64) error {
	if off%m.head.clusterSize() != 0 || n > m.fileSize || off > m.fileSize-n {
		return corruptf("%d bytes at %d are not in the file of %d bytes, or not at a cluster of %d",
			n, off, m.fileSize, m.head.clusterSize())
	}
	return nil
}

func be64(p []byte) uint64 { return binary.BigEndian.Uint64(p) }
