package layers

import (
	"fmt"
	"time"
)

const (
	headerMagic  = "varvevol"
	headerLength = 128
)

// volumeHeader is the file "volume": what never changes. docs/format.md,
// "volume".
type volumeHeader struct {
	ID      ID
	Created time.Time
	Size    int64 // bytes, when it was created
}

func (h volumeHeader) encode() []byte {
	b := make([]byte, headerLength)
	putHeader(b, headerMagic)
	copy(b[16:], h.ID[:])
	le.PutUint64(b[32:], uint64(h.Created.UnixNano()))
	le.PutUint64(b[40:], uint64(h.Size))
	le.PutUint32(b[48:], BlockSize)
	le.PutUint32(b[124:], crc(b[:124]))
	return b
}

func decodeHeader(path string, b []byte) (volumeHeader, error) {
	var h volumeHeader
	if err := checkHeader(path, b, headerMagic, headerLength); err != nil {
		return h, err
	}
	if len(b) != headerLength {
		return h, &CorruptError{path, headerLength, "the end of the file", fmt.Sprintf("%d bytes more", len(b)-headerLength)}
	}
	if err := checkReserved(path, b, 52, 124); err != nil {
		return h, err
	}
	if got := le.Uint32(b[48:]); got != BlockSize {
		return h, fmt.Errorf("%s: block size %d: %w", path, got, ErrUnsupported)
	}
	copy(h.ID[:], b[16:])
	h.Created = time.Unix(0, int64(le.Uint64(b[32:]))).UTC()
	h.Size = int64(le.Uint64(b[40:]))
	if h.ID.IsZero() {
		return h, &CorruptError{path, 16, "the volume's id", "zeros"}
	}
	if err := checkSize(h.Size); err != nil {
		return h, &CorruptError{path, 40, "a size of whole sectors", err.Error()}
	}
	return h, nil
}
