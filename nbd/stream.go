package nbd

import (
	"io"
	"time"
)

const (
	// streamPiece is how much of a large WRITE's payload is waited for before
	// it is written, in bytes; whatever else has arrived is written with it.
	streamPiece = 32 << 10

	// streamAlign is where pieces of a payload end, in bytes of the device: the
	// blocks of a device that has blocks are written whole.
	streamAlign = 4 << 10
)

// streams says whether the reader writes the payload of r while it arrives.
// Then it never leaves the processor's cache, and the client sends the next
// piece meanwhile. A device that has turned out to be slow gets whole requests,
// many at once, from the workers.
func (s *session) streams(r *request) bool {
	if r.cmd != cmdWrite || r.n == 0 || r.flags&cmdFlagFUA != 0 {
		return false
	}
	if s.pace.slow() && !s.alone(r) {
		return false
	}
	return !s.tasks.mustWait(r)
}

// stream serves a WRITE piece by piece from the input's buffer. No lock is held
// between pieces, however slow the client is. After an error of the device the
// rest of the payload is read over. The error that it returns is the
// connection's.
func (s *session) stream(r *request) error {
	s.pace.stop()
	var failed error
	var took time.Duration
	off, left := int64(r.off), int64(r.n)
	for left > 0 && failed == nil {
		if err := s.in.need(int(min(left, streamPiece))); err != nil {
			if err == io.EOF {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		n := min(left, int64(len(s.in.waiting())))
		if n < left {
			n -= (off + n) % streamAlign
		}
		p := s.in.take(int(n))
		began := time.Now()
		failed = s.guard("write", func() error { return s.write(p, off) })
		took += time.Since(began)
		off, left = off+n, left-n
	}
	s.pace.judge(took, int(r.n/quickBytes)+1)
	if failed != nil {
		if err := s.in.skip(left); err != nil {
			return err
		}
		s.fail(r, failed, s.room())
		return nil
	}
	s.room().success(r)
	return nil
}
