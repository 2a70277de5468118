package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"varve/layers"
)

// Magic is what every image begins with: "QFI\xfb".
const Magic = "QFI\xfb"

// Sizes and limits. QEMU has the same limits for clusters, L1 table and name
// (block/qcow2.h).
const (
	lenHeader2     = 72 // bytes of a header of version 2
	lenHeader3     = 104
	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 32 << 20 // bytes
	maxName        = 1023     // bytes of a backing file's name
	maxExtensions  = 64
)

// Incompatible features, by bit: "Header", bytes 72 to 79.
const (
	featureDirty       = 1 << 0 // the refcounts are not to be trusted; nothing here reads them
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
)

// Header extensions: "Header extensions".
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
)

type compression uint8

const (
	deflate compression = 0 // the format calls it zlib, but has no zlib header
	zstd    compression = 1
)

// A header is what an image says about itself, checked.
type header struct {
	version       uint32
	clusterBits   uint32
	size          int64 // bytes, of the disk
	l1Off         int64
	l1Count       int64
	compression   compression
	backing       string // name of the backing file; empty: none
	backingFormat string // empty: not said
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }

// l2Entries is the number of entries in an L2 table.
func (h *header) l2Entries() int64 { return h.clusterSize() / 8 }

// span is how many bytes of the disk an L2 table describes.
func (h *header) span() int64 { return h.clusterSize() * h.l2Entries() }

// readHeader reads and checks the header of an image of fileSize bytes.
func readHeader(r io.ReaderAt, fileSize int64) (*header, error) {
	first := make([]byte, min(fileSize, lenHeader3+8))
	if _, err := readFull(r, first, 0); err != nil {
		return nil, err
	}
	if len(first) < lenHeader2 || string(first[:4]) != Magic {
		return nil, errors.New("not a qcow2 image: it does not begin like one")
	}
	h := &header{version: be32(first[4:]), clusterBits: be32(first[20:])}
	switch {
	case h.version != 2 && h.version != 3:
		return nil, fmt.Errorf("version %d of the format is not known, only 2 and 3: %w", h.version, layers.ErrUnsupported)
	case h.version == 3 && len(first) < lenHeader3:
		return nil, corruptf("the header is cut off")
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return nil, corruptf("clusters of 2^%d bytes", h.clusterBits)
	case be32(first[32:]) != 0:
		return nil, fmt.Errorf("the image is encrypted, which is not supported: decrypt it with qemu-img convert: %w", layers.ErrUnsupported)
	}
	length := int64(lenHeader2)
	if h.version == 3 {
		length = int64(be32(first[100:]))
		if length < lenHeader3 || length%8 != 0 || length > h.clusterSize() {
			return nil, corruptf("a header of %d bytes", length)
		}
		if err := h.takeFeatures(first, length); err != nil {
			return nil, err
		}
	}
	if err := h.takeTable(first, fileSize); err != nil {
		return nil, err
	}
	return h, h.takeBacking(r, first, length, fileSize)
}

// takeFeatures refuses what changes the meaning of an image in a way that is
// not known here.
func (h *header) takeFeatures(first []byte, length int64) error {
	features := binary.BigEndian.Uint64(first[72:])
	switch {
	case features&featureCorrupt != 0:
		return fmt.Errorf("the image is marked as corrupt; repair it with qemu-img check -r all: %w", layers.ErrCorrupt)
	case features&featureDataFile != 0:
		return fmt.Errorf("the image keeps its data in another file, which is not supported; make it whole with qemu-img convert: %w", layers.ErrUnsupported)
	case features&featureExtendedL2 != 0:
		return fmt.Errorf("the image has extended L2 entries, which are not supported; "+
			"convert it with qemu-img convert -O qcow2: %w", layers.ErrUnsupported)
	case features&^(featureDirty|featureCompression) != 0:
		return fmt.Errorf("the image uses features that are not known here (%#x): %w", features, layers.ErrUnsupported)
	}
	kind := uint8(0)
	if length > lenHeader3 && len(first) > lenHeader3 {
		kind = first[lenHeader3]
	}
	switch {
	case kind > uint8(zstd):
		return fmt.Errorf("compression of type %d is not known: %w", kind, layers.ErrUnsupported)
	case (kind != 0) != (features&featureCompression != 0):
		return corruptf("compression of type %d, features %#x", kind, features)
	}
	h.compression = compression(kind)
	return nil
}

// takeTable checks size and L1 table against each other and the file.
func (h *header) takeTable(first []byte, fileSize int64) error {
	size, off := binary.BigEndian.Uint64(first[24:]), binary.BigEndian.Uint64(first[40:])
	h.l1Count = int64(be32(first[36:]))
	if size > math.MaxInt64-uint64(h.span()) {
		return corruptf("a disk of %d bytes", size)
	}
	h.size, h.l1Off = int64(size), int64(off)
	need := (h.size + h.span() - 1) / h.span()
	switch bytes := h.l1Count * 8; {
	case need*8 > maxL1 || bytes > maxL1:
		return fmt.Errorf("a disk of %d bytes in clusters of %d, with %d L1 entries: larger than QEMU allows: %w",
			h.size, h.clusterSize(), h.l1Count, layers.ErrUnsupported)
	case h.l1Count < need:
		return corruptf("%d entries in the L1 table, and %d bytes need %d", h.l1Count, h.size, need)
	case h.l1Count > 0 && (h.l1Off <= 0 || h.l1Off%h.clusterSize() != 0 || h.l1Off > fileSize-bytes):
		return corruptf("the L1 table at %d, %d bytes long, is not within the file of %d bytes", off, bytes, fileSize)
	}
	h.l1Count = need // the rest describes nothing
	return nil
}

// takeBacking reads the name of the backing file, and its format from the
// header's extensions.
func (h *header) takeBacking(r io.ReaderAt, first []byte, length, fileSize int64) error {
	off, n := binary.BigEndian.Uint64(first[8:]), int64(be32(first[16:]))
	if off == 0 {
		return nil
	}
	end := min(h.clusterSize(), fileSize)
	if n == 0 || n > maxName || off > uint64(end-min(n, end)) {
		return corruptf("the name of the backing file at %d, %d bytes long", off, n)
	}
	name := make([]byte, n)
	if _, err := readFull(r, name, int64(off)); err != nil {
		return err
	}
	h.backing = string(name)
	at := length
	for range maxExtensions {
		var head [8]byte
		if at+8 > min(end, int64(off)) {
			return nil
		}
		if _, err := readFull(r, head[:], at); err != nil {
			return err
		}
		kind, n := be32(head[:]), int64(be32(head[4:]))
		at += 8
		if kind == extensionEnd {
			return nil
		}
		if n > end-at {
			return corruptf("a header extension of %d bytes at %d", n, at)
		}
		if kind == extensionBackingFormat {
			text := make([]byte, min(n, maxName))
			if _, err := readFull(r, text, at); err != nil {
				return err
			}
			h.backingFormat = strings.ToLower(string(text))
		}
		at += (n + 7) / 8 * 8
	}
	return corruptf("more than %d header extensions", maxExtensions)
}

func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }

// corruptf is an error that is layers.ErrCorrupt.
func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, layers.ErrCorrupt)...)
}

// readFull fills p. A file that ends before is damage, since every length was
// checked against its size.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = corruptf("the file ends at %d, expected %d bytes at %d", off+int64(n), len(p), off)
	}
	return n, err
}
