package qcow2

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"

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
		d := zstdReaders.Get().(*zstdlib.Decoder)
		defer zstdReaders.Put(d)
		if err := d.Reset(bytes.NewReader(p)); err != nil {
			return err
		}
		_, err := io.ReadFull(d, cluster)
		return err
	}
	d := deflateReaders.Get().(io.Reader)
	defer deflateReaders.Put(d)
	if err := d.(flate.Resetter).Reset(bytes.NewReader(p), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(d, cluster)
	return err
}

// Readers are kept: each has tens of KiB of tables. One that met an error is as
// good as new after Reset.
var (
	deflateReaders = sync.Pool{New: func() any { return flate.NewReader(nil) }}
	zstdReaders    = sync.Pool{New: func() any {
		// With one goroutine it works in its caller's, so nothing is left
		// behind when the pool drops it.
		d, err := zstdlib.NewReader(nil, zstdlib.WithDecoderConcurrency(1), zstdlib.WithDecoderLowmem(true),
			zstdlib.WithDecoderMaxMemory(64<<20), zstdlib.WithDecoderMaxWindow(2<<maxClusterBits))
		if err != nil {
			panic("qcow2: " + err.Error()) // the options are constants
		}
		return d
	}}
)
