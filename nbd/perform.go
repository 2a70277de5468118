package nbd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"runtime/debug"

	"varve/layers"
)

const (
	// maxRuns bounds the content chunks of one reply; what comes after them
	// is sent as one run of data.
	maxRuns = 32

	// minHole is the shortest run of zeros that is worth a chunk of its own
	// inside a read, in bytes.
	minHole = 16 << 10

	// scratchBytes is the size of the pieces in which CACHE reads and
	// WRITE_ZEROES with NO_HOLE writes.
	scratchBytes = 1 << 20

	// maxCache bounds what one CACHE reads, in bytes. CACHE is a hint.
	maxCache = 64 << 20
)

// perform serves a request that passed check and adds the reply to b. A panic
// of the device is an I/O error of this request.
func (s *session) perform(r *request, payload []byte, b *batch) {
	m := b.mark()
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("nbd: the device panicked", "request", r.name(), "off", r.off, "len", r.n,
				"panic", v, "stack", string(debug.Stack()))
			b.rewind(m)
			s.fail(r, errPanic, b)
		}
	}()
	var err error
	switch r.cmd {
	case cmdRead:
		s.read(r, b)
		return
	case cmdBlockStatus:
		s.blockStatus(r, b)
		return
	case cmdWrite:
		err = s.write(payload, int64(r.off))
	case cmdTrim:
		err = s.zero(int64(r.off), int64(r.n))
	case cmdWriteZeroes:
		if r.flags&cmdFlagNoHole != 0 {
			err = s.writeZeros(int64(r.off), int64(r.n))
		} else {
			err = s.zero(int64(r.off), int64(r.n))
		}
	case cmdCache:
		err = s.cache(int64(r.off), int64(r.n))
	case cmdFlush:
		err = s.flush()
	}
	if err == nil && r.flags&cmdFlagFUA != 0 && r.changes() {
		err = s.flush()
	}
	if err != nil {
		s.fail(r, err, b)
		return
	}
	b.success(r)
}

func (s *session) flush() error {
	if s.readOnly {
		return nil
	}
	return s.device.Flush()
}

func (s *session) zero(off, n int64) error {
	if n == 0 {
		return nil
	}
	return s.device.WriteZeroes(off, n)
}

func (s *session) write(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := s.device.WriteAt(p, off)
	if err == nil && n < len(p) {
		return io.ErrShortWrite
	}
	return err
}

// writeZeros writes zeros as data: NO_HOLE asks for space that is taken. It
// stops when nobody waits for it any more.
func (s *session) writeZeros(off, n int64) error {
	for n > 0 {
		if s.gone() {
			return context.Cause(s.ctx)
		}
		m := min(n, int64(len(zeros)))
		if err := s.write(zeros[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// cache reads a range so that what keeps it near has it, and drops it.
func (s *session) cache(off, n int64) error {
	n = min(n, maxCache)
	buf := newBuffer(int(min(n, scratchBytes)))
	defer buf.free()
	for n > 0 && !s.gone() {
		p := buf.b[:min(n, scratchBytes)]
		if _, err := s.readAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// readAt fills p, or tells how many bytes of it are good.
func (s *session) readAt(p []byte, off int64) (int, error) {
	n, err := s.device.ReadAt(p, off)
	if n >= len(p) {
		return len(p), nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return max(n, 0), err
}

// read answers a READ.
func (s *session) read(r *request, b *batch) {
	switch {
	case r.n == 0 && s.structured:
		b.chunk(r, chunkNone, chunkDone, 0, 0)
	case r.n == 0:
		b.simple(r, 0)
	case !s.structured:
		s.readSimple(r, b)
	case r.flags&cmdFlagDF != 0 || r.n <= quickBytes:
		s.readRun(r, run{int64(r.off), int64(r.n), true}, chunkDone, b)
	default:
		s.readSparse(r, b)
	}
}

func (s *session) readSimple(r *request, b *batch) {
	buf := newBuffer(int(r.n))
	if _, err := s.readAt(buf.b[:r.n], int64(r.off)); err != nil {
		buf.free()
		s.fail(r, err, b)
		return
	}
	b.simple(r, 0)
	b.attach(buf, int(r.n))
}

// A run is a part of a read that is sent as one chunk.
type run struct {
	off, n int64
	data   bool // else zeros
}

// readSparse answers a large READ with the zeros that the device knows of left
// out.
func (s *session) readSparse(r *request, b *batch) {
	var space [maxRuns]run
	runs := s.runs(space[:0], int64(r.off), int64(r.n))
	for i, part := range runs {
		var done uint16
		if i == len(runs)-1 {
			done = chunkDone
		}
		if !s.readRun(r, part, done, b) {
			return
		}
	}
}

// readRun adds one chunk of a READ, or two that say how far it was good and
// why not further; then it is false.
func (s *session) readRun(r *request, part run, done uint16, b *batch) bool {
	if !part.data {
		b.hole(r, done, part.off, part.n)
		return true
	}
	buf := newBuffer(int(part.n))
	p := buf.b[:part.n]
	n, err := s.readAt(p, part.off)
	switch {
	case err == nil && len(p) <= len(zeros) && bytes.Equal(p, zeros[:len(p)]):
		buf.free()
		b.hole(r, done, part.off, part.n)
		return true
	case err == nil:
		b.data(r, done, part.off, buf, len(p))
		return true
	case n > 0:
		b.data(r, 0, part.off, buf, n)
	default:
		buf.free()
	}
	s.logFailure(r, err)
	b.failureAt(r, errnoOf(err), err.Error(), part.off+int64(n))
	return false
}

// runs appends to space, up to its capacity, the runs of data and of zeros
// that make up [off, off+n). Absent bytes are zeros. Short runs of zeros count
// as data. If the device cannot tell, all is data.
func (s *session) runs(space []run, off, n int64) []run {
	end, pos := off+n, off
	add := func(until int64, data bool) {
		if until <= pos {
			return
		}
		length := until - pos
		data = data || length < minHole
		last := len(space) - 1
		switch {
		case last >= 0 && (space[last].data == data || len(space) == cap(space)):
			space[last].n += length
			space[last].data = space[last].data || data
		default:
			space = append(space, run{pos, length, data})
		}
		pos = until
	}
	for e, err := range s.device.Extents(off, n) {
		if err != nil {
			return append(space[:0], run{off, n, true})
		}
		if e = e.Clip(off, n); e.Len > 0 && e.Kind == layers.Data {
			add(e.Off, false)
			add(e.End(), true)
		}
	}
	add(end, false)
	return space
}

// fail adds the reply to a request that the device failed.
func (s *session) fail(r *request, err error, b *batch) {
	s.logFailure(r, err)
	s.refuse(r, &refusal{errnoOf(err), err.Error()}, b)
}

// refuse adds a reply with an error. It has a text where the client reads one.
func (s *session) refuse(r *request, why *refusal, b *batch) {
	if s.structured {
		b.failure(r, why.errno, why.text)
	} else {
		b.simple(r, why.errno)
	}
}

// logFailure logs the first failure of a session, the second, the fourth and so
// on: a broken device must not fill the log.
func (s *session) logFailure(r *request, err error) {
	if n := s.failures.Add(1); bits.OnesCount64(n) == 1 {
		s.log.Warn("nbd: request failed", "request", r.name(), "off", r.off, "len", r.n,
			"failures", n, slog.Any("error", err))
	}
}

// name is the command's name in the protocol document.
func (r *request) name() string {
	names := [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}
	if int(r.cmd) < len(names) {
		return names[r.cmd]
	}
	return fmt.Sprintf("command %d", r.cmd)
}

// zeros is as long as the longest read that is looked through for zeros.
var zeros = alignedBytes(quickBytes)
