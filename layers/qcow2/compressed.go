package qcow2

import (
	"bytes"
	"compress/flate"
	"io"

	zstdlib "github.com/klauspost/compress/zstd"
)

// decompress reads the cluster of a compressed L2 entry: "Compressed Clusters
// Descriptor". It fills the cache of clusters.
func (m *Image) decompress(entry uint64) ([]byte, error) {
	bits := 62 - (m.head.clusterBits - 8) // of the offset
	off := int64(entry & (1<<bits - 1))
	sectors := int64(entry &^ (entryCompressed | entryCopied) >> bits)
	// The data begins within a sector of 512 bytes and ends within the last
	// of them, or where the file does.
	n := min((sectors+1)*512-off%512, m.fileSize-off)
	if n <= 0 {
		return nil, corruptf("its data at %d is not in the file of %d bytes", off, m.fileSize)
	}
	p := make([]byte, n)
	if _, err := readFull(m.r, p, off); err != nil {
		return nil, err
	}
	cluster := make([]byte, m.head.clusterSize())
	if err := m.inflate(cluster, p); err != nil {
		return nil, corruptf("its data at %d: %v", off, err)
	}
	return cluster, nil
}

// inflate fills a cluster. What follows in p is of others.
func (m *Image) inflate(cluster, p []byte) error {
	if m.head.compression == zstd {
		d, err := zstdlib.NewReader(bytes.NewReader(p), zstdlib.WithDecoderConcurrency(1), zstdlib.WithDecoderLowmem(true),
			zstdlib.WithDecoderMaxMemory(1<<26), zstdlib.WithDecoderMaxWindow(2<<maxClusterBits))
		if err != nil {
			return err
		}
		defer d.Close()
		_, err = io.ReadFull(d, cluster)
		return err
	}
	_, err := io.ReadFull(flate.NewReader(bytes.NewReader(p)), cluster)
	return err
}
