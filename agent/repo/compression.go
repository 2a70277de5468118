package repo

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A Compression is how hard frames are compressed. What is stored reads the
// same, so it can be another one in each backup. Its values are written: level
// in docs/format.md 2.2.
type Compression uint8

const (
	Fastest Compression = 1 // zstd at the fastest level of the encoder
	Default Compression = 2 // zstd at its default level: 3 to 5 % less to store, at three quarters of the speed
)

// ParseCompression reads what String returns; nothing is zero.
func ParseCompression(s string) (Compression, error) {
	switch s {
	case "":
		return 0, nil
	case "fastest":
		return Fastest, nil
	case "default":
		return Default, nil
	}
	return 0, fmt.Errorf("unknown compression %q: it is fastest or default", s)
}

func (c Compression) String() string {
	switch c {
	case Fastest:
		return "fastest"
	case Default:
		return "default"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

func (c Compression) known() bool { return c == Fastest || c == Default }

// thorough is the encoder of Default. It takes five times the memory of the
// fastest one, so it is made when it is first used.
var thorough = sync.OnceValue(func() *zstd.Encoder { return newEncoder(zstd.SpeedDefault) })

// compress appends text as one zstd frame.
func (c Compression) compress(dst, text []byte) []byte {
	if c == Default {
		return thorough().EncodeAll(text, dst)
	}
	return compress(dst, text)
}
