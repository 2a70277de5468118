package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"

	"varve/layers"
)

// What Write makes.
const (
	writeBits    = 16 // clusters of 64 KiB, QEMU's own default
	writeCluster = 1 << writeBits
	writeSpan    = writeCluster * (writeCluster / 8) // bytes of disk for each L2 table: 512 MiB
	refcounts    = writeCluster / 2                  // of 16 bits in a block
	sector       = 512                               // the unit of a disk's size
)

// WriteOptions are what Write may be told.
type WriteOptions struct {
	Depth    int                     // pieces that are read ahead; 0: 8
	Progress func(done, total int64) // bytes of the disk; may be nil
}

// Write makes an image of a layer in w, which must be empty. Clusters that are
// all zeros are left out: there is nothing below the image. The size of the
// layer must be a multiple of 512 bytes. After an error w holds no image.
//
// Write does not sync. size is the length of the file, in bytes.
func Write(ctx context.Context, w io.WriterAt, l layers.Layer, o WriteOptions) (size int64, err error) {
	if l.Size()%sector != 0 {
		return 0, fmt.Errorf("write a qcow2 image: a disk of %d bytes is no multiple of %d: %w", l.Size(), sector, fs.ErrInvalid)
	}
	if o.Depth <= 0 {
		o.Depth = 8
	}
	tables := (l.Size() + writeSpan - 1) / writeSpan
	if tables*8 > maxL1 {
		return 0, fmt.Errorf("write a qcow2 image: a disk of %d bytes is larger than clusters of %d allow: %w", l.Size(), writeCluster, fs.ErrInvalid)
	}
	im := &imageWriter{w: w, l1: make([]byte, roundUp(tables*8)), table: -1, cluster: -1}
	im.next = writeCluster + int64(len(im.l1)) // after header and L1 table
	for piece, err := range layers.Scan(ctx, l, o.Depth) {
		if err != nil {
			return 0, fmt.Errorf("write a qcow2 image: %w", err)
		}
		if piece.Kind == layers.Data {
			if err := im.data(piece.Bytes, piece.Off); err != nil {
				return 0, err
			}
		}
		if o.Progress != nil {
			o.Progress(piece.End(), l.Size())
		}
	}
	if err := im.finish(l.Size()); err != nil {
		return 0, err
	}
	return im.next, nil
}

// An imageWriter writes clusters in ascending order, each after the one before.
//
//	header │ L1 table │ L2 table, its data, L2 table, its data … │ refcount blocks │ refcount table
//
// All clusters up to next are in use once.
type imageWriter struct {
	w    io.WriterAt
	next int64 // where the next cluster goes
	l1   []byte

	table   int64  // index of the L2 table at hand; -1: none
	l2      []byte // that table
	l2Off   int64
	cluster int64 // number of the cluster at hand; -1: none
	bytes   []byte
}

// data takes bytes of the disk, which come in ascending order.
func (im *imageWriter) data(p []byte, off int64) error {
	for len(p) > 0 {
		at := off % writeCluster
		n := min(int64(len(p)), writeCluster-at)
		if err := im.enter(off / writeCluster); err != nil {
			return err
		}
		copy(im.bytes[at:], p[:n])
		p, off = p[n:], off+n
	}
	return nil
}

// enter makes cluster i the one at hand.
func (im *imageWriter) enter(i int64) error {
	if i == im.cluster {
		return nil
	}
	if err := im.leave(); err != nil {
		return err
	}
	im.cluster = i
	if im.bytes == nil {
		im.bytes = make([]byte, writeCluster)
	}
	clear(im.bytes)
	return nil
}

// leave writes the cluster at hand, unless it is all zeros.
func (im *imageWriter) leave() error {
	if im.cluster < 0 || layers.IsZero(im.bytes) {
		return nil
	}
	const perTable = writeCluster / 8
	if err := im.enterTable(im.cluster / perTable); err != nil {
		return err
	}
	binary.BigEndian.PutUint64(im.l2[im.cluster%perTable*8:], uint64(im.next)|entryCopied)
	return im.put(im.bytes)
}

// enterTable makes L2 table i the one at hand.
func (im *imageWriter) enterTable(i int64) error {
	if i == im.table {
		return nil
	}
	if err := im.leaveTable(); err != nil {
		return err
	}
	if im.l2 == nil {
		im.l2 = make([]byte, writeCluster)
	}
	clear(im.l2)
	im.table, im.l2Off = i, im.next
	binary.BigEndian.PutUint64(im.l1[i*8:], uint64(im.l2Off)|entryCopied)
	im.next += writeCluster
	return nil
}

func (im *imageWriter) leaveTable() error {
	if im.table < 0 {
		return nil
	}
	return im.write(im.l2, im.l2Off)
}

// put writes p, whole clusters, to the next place.
func (im *imageWriter) put(p []byte) error {
	if err := im.write(p, im.next); err != nil {
		return err
	}
	im.next += int64(len(p))
	return nil
}

func (im *imageWriter) write(p []byte, off int64) error {
	if _, err := im.w.WriteAt(p, off); err != nil {
		return fmt.Errorf("write a qcow2 image: at %d: %w", off, err)
	}
	return nil
}

// finish writes what is still at hand, the L1 table, the refcounts, and at last
// the header.
func (im *imageWriter) finish(size int64) error {
	if err := im.leave(); err != nil {
		return err
	}
	if err := im.leaveTable(); err != nil {
		return err
	}
	if err := im.write(im.l1, writeCluster); err != nil {
		return err
	}
	blocks, tableBytes := refcountSize(im.next / writeCluster)
	used := im.next/writeCluster + blocks + tableBytes/writeCluster
	table := make([]byte, tableBytes)
	for i := range blocks {
		binary.BigEndian.PutUint64(table[i*8:], uint64(im.next))
		block := make([]byte, writeCluster)
		for j := range min(refcounts, used-i*refcounts) {
			block[2*j+1] = 1
		}
		if err := im.put(block); err != nil {
			return err
		}
	}
	tableOff := im.next
	if err := im.put(table); err != nil {
		return err
	}
	return im.write(newHeader(size, int64(len(im.l1)), tableOff, tableBytes), 0)
}

// refcountSize is the number of refcount blocks and the bytes of the refcount
// table, in whole clusters, for a file of so many clusters and these.
func refcountSize(clusters int64) (blocks, tableBytes int64) {
	for {
		all := clusters + blocks + tableBytes/writeCluster
		need := (all + refcounts - 1) / refcounts
		if need == blocks && tableBytes == roundUp(need*8) {
			return blocks, tableBytes
		}
		blocks, tableBytes = need, roundUp(need*8)
	}
}

// newHeader is the first cluster: "Header", version 3.
func newHeader(size, l1Bytes, refcountOff, refcountBytes int64) []byte {
	p := make([]byte, writeCluster)
	copy(p, Magic)
	put32, put64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	put32(p[4:], 3) // version
	put32(p[20:], writeBits)
	put64(p[24:], uint64(size))
	put32(p[36:], uint32((size+writeSpan-1)/writeSpan)) // entries of the L1 table
	put64(p[40:], writeCluster)                         // where it is
	put64(p[48:], uint64(refcountOff))
	put32(p[56:], uint32(refcountBytes/writeCluster))
	put32(p[96:], 4) // refcounts of 1<<4 bits
	put32(p[100:], lenHeader3)
	return p // followed by zeros: the end of the header extensions
}

func roundUp(n int64) int64 {
	return (n + writeCluster - 1) / writeCluster * writeCluster
}
