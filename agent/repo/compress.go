package repo

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// All but frames is compressed at the fastest level of zstd: it is small.
var (
	encoder = newEncoder(zstd.SpeedFastest)
	expands = newDecoder()
)

// coresMax bounds the encoders, of 270 KiB or 1.3 MiB each, and the decoders.
const coresMax = 32

func newEncoder(level zstd.EncoderLevel) *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(min(runtime.GOMAXPROCS(0), coresMax)),
		zstd.WithSingleSegment(true),   // the frame always says its size
		zstd.WithWindowSize(zstdBlock), // blocks become no longer than it, and stay so
		zstd.WithWindowSize(frameBytes),
		zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true), // 0.4 % less to store, 1 % slower
		zstd.WithEncoderCRC(false))              // the seal and the id are stronger
	if err != nil {
		panic("repo: zstd encoder: " + err.Error())
	}
	// Its channels are made at the first use. Made in a synctest bubble they
	// would belong to that one.
	e.EncodeAll(zeroBlock[:1], nil)
	return e
}

func newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(min(runtime.GOMAXPROCS(0), coresMax)),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true)) // never more than the buffer that it was given
	if err != nil {
		panic("repo: zstd decoder: " + err.Error())
	}
	return d
}

// compress appends text as one zstd frame.
func compress(dst, text []byte) []byte { return encoder.EncodeAll(text, dst) }

// expand decompresses at most limit bytes. It first allocates what the zstd
// frame says that it holds, if that is within the limit and can be true.
func expand(stored []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if !h.HasFCS {
		return nil, fmt.Errorf("zstd: the frame does not say its size")
	}
	if h.FrameContentSize > uint64(limit) {
		return nil, fmt.Errorf("zstd: holds %d bytes, over %d", h.FrameContentSize, limit)
	}
	text, err := expands.DecodeAll(stored, make([]byte, 0, h.FrameContentSize+expandSlack))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if uint64(len(text)) != h.FrameContentSize {
		return nil, fmt.Errorf("zstd: holds %d bytes, says %d", len(text), h.FrameContentSize)
	}
	return text, nil
}

// expandSlack is how much longer than the text the buffer for it should be, in
// bytes: the decoder then copies 16 bytes at a time up to the end, which takes
// three quarters of the time.
const expandSlack = 16

// newPlain makes a buffer for the blocks of any frame.
func newPlain() []byte { return make([]byte, frameBytes, frameBytes+expandSlack) }

// expandInto decompresses stored to exactly len(dst) bytes. What follows them in
// dst's capacity is overwritten, up to expandSlack bytes of it.
func expandInto(dst, stored []byte) error {
	text, err := expands.DecodeAll(stored, dst[:0:min(cap(dst), len(dst)+expandSlack)])
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if len(text) != len(dst) {
		return fmt.Errorf("zstd: holds %d bytes, expected %d", len(text), len(dst))
	}
	return nil
}

// A trier decides which frames are worth trying to compress: after 4 in a row
// that did not shrink only every 4th is tried, until one shrinks. Encrypted
// volumes and media then run at the speed of hashing. It is safe for
// concurrent use; what it decides depends on how the workers interleave, what
// is stored reads the same.
type trier struct {
	stubborn atomic.Int64 // frames in a row that did not shrink
	seen     atomic.Int64
}

func (t *trier) try() bool {
	return t.stubborn.Load() < 4 || t.seen.Add(1)%4 == 0
}

func (t *trier) result(shrank bool) {
	if shrank {
		t.stubborn.Store(0)
	} else {
		t.stubborn.Add(1)
	}
}

// shrinks reports whether a compressed frame saves at least 1/32, which is
// when it is kept.
func shrinks(stored, plain int) bool { return stored <= plain-plain/32 }
