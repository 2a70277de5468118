package main

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// A replyScanner finds the replies in a server's stream, which arrives cut at
// any byte. It passes over payloads without keeping them.
type replyScanner struct {
	readSize int // bytes of payload after a simple reply; 0 if the requests are writes

	head  [structuredSize]byte
	have  int // bytes of head that are here
	need  int // payload bytes still to come
	ends  bool
	after uint64 // cookie of the reply whose payload is passing by
}

// scan takes the next bytes of the stream and calls done with the cookie of
// each request whose reply is now complete, in stream order. After an error the
// scanner is of no more use.
func (s *replyScanner) scan(b []byte, done func(cookie uint64) error) error {
	for {
		if n := min(s.need, len(b)); n > 0 {
			s.need -= n
			b = b[n:]
		}
		if s.need == 0 && s.ends {
			s.ends = false
			if err := done(s.after); err != nil {
				return err
			}
		}
		if len(b) == 0 {
			return nil
		}
		b = b[s.fill(b):]
		if s.have < s.headSize() {
			continue
		}
		s.have = 0
		if err := s.header(); err != nil {
			return err
		}
	}
}

// fill moves bytes of a header into head and says how many it took.
func (s *replyScanner) fill(b []byte) int {
	n := copy(s.head[s.have:s.headSize()], b)
	s.have += n
	return n
}

// headSize is how long the header must become as far as is known.
func (s *replyScanner) headSize() int {
	switch {
	case s.have < 4:
		return 4
	case binary.BigEndian.Uint32(s.head[:]) == magicStructured:
		return structuredSize
	}
	return simpleSize
}

// header decodes a complete header.
func (s *replyScanner) header() error {
	h := s.head[:]
	switch magic := binary.BigEndian.Uint32(h); magic {
	case magicSimple:
		if code := binary.BigEndian.Uint32(h[4:]); code != 0 {
			return fmt.Errorf("the server answers %w", syscall.Errno(code))
		}
		s.after, s.need, s.ends = binary.BigEndian.Uint64(h[8:]), s.readSize, true
	case magicStructured:
		flags, kind, n := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint32(h[16:])
		if kind&chunkErrBit != 0 || n > chunkMaxData {
			return fmt.Errorf("the server answers with a chunk of type %#x, %d bytes", kind, n)
		}
		s.after, s.need, s.ends = binary.BigEndian.Uint64(h[8:]), int(n), flags&chunkDone != 0
	default:
		return fmt.Errorf("bad magic %#x in a reply", magic)
	}
	return nil
}
