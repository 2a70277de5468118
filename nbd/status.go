package nbd

import (
	"encoding/binary"
	"iter"

	"varve/layers"
)

// A Context is something that an export can tell about its bytes beside what
// base:allocation tells: a metadata context.
type Context struct {
	Name string // NAMESPACE:LEAF, UTF-8, at most 4096 bytes

	// Runs yields the values of [off, off+n), in ascending order and without
	// overlap; where nothing is yielded the value is 0. It may be called
	// concurrently, until Export.Close.
	Runs func(off, n int64) iter.Seq2[layers.Run, error]
}

const (
	// maxContexts is how many contexts a client may select.
	maxContexts = 32

	// maxDescribed is how many extents one BLOCK_STATUS reply has at most for
	// a context.
	maxDescribed = 4095

	// statusBytes bounds the content of such a reply: the context's number,
	// and descriptors of 16 bytes in the extended form; almost 64 KiB.
	statusBytes = 8 + maxDescribed*16

	// maxStatusRange bounds what one reply describes, in bytes: finding it out
	// takes time.
	maxStatusRange = 1 << 40
)

// takeFilter takes the payload of a BLOCK_STATUS, which selects among the
// contexts of the session:
//
//	number of bytes to describe 64 | numbers of contexts, 32 each
//
// Without a payload all are asked for. A payload that is not valid asks for
// none, and is consumed.
func (s *session) takeFilter(r *request) error {
	if r.payload() == 0 {
		r.contexts = 1<<len(s.contexts) - 1
		return nil
	}
	n := r.n
	r.n, r.flags = 0, r.flags&^cmdFlagPayload
	if n < 8 || n%4 != 0 || n > 8+4*maxContexts {
		return s.in.skip(int64(n))
	}
	if err := s.in.need(int(n)); err != nil {
		return err
	}
	p := s.in.take(int(n))
	r.n = binary.BigEndian.Uint64(p)
	for p = p[8:]; len(p) > 0; p = p[4:] {
		i := binary.BigEndian.Uint32(p) - 1 // 0 becomes a large number
		if i >= uint32(len(s.contexts)) || r.contexts>>i&1 != 0 {
			r.contexts = 0
			return nil
		}
		r.contexts |= 1 << i
	}
	return nil
}

// blockStatus answers a BLOCK_STATUS with one chunk for each context that is
// asked for.
func (s *session) blockStatus(r *request, b *batch) {
	m := b.mark()
	for i := range s.contexts {
		if r.contexts>>i&1 == 0 {
			continue
		}
		var flags uint16
		if r.contexts>>i == 1 {
			flags = chunkDone
		}
		if err := s.describe(r, i, flags, b); err != nil {
			b.rewind(m)
			s.fail(r, err, b)
			return
		}
	}
}

// describe adds the chunk of one context. It may end before the request does,
// which the protocol allows.
func (s *session) describe(r *request, context int, flags uint16, b *batch) error {
	start := int64(r.off)
	end := start + int64(min(r.n, maxStatusRange))
	d := newDescription(r, uint32(context+1))
	for run, err := range s.contexts[context].Runs(start, end-start) {
		if err == nil && s.gone() {
			err = s.ctx.Err()
		}
		if err != nil {
			d.buf.free()
			return err
		}
		from, to := max(run.Off, d.pos), min(run.End(), end)
		if from < to && !(d.extend(from, 0) && d.extend(to, run.Value)) {
			break
		}
	}
	if d.extend(end, 0) {
		d.put()
	}
	kind := chunkBlockStatus
	if r.extended {
		kind = chunkStatusExt
	}
	n := d.finish()
	b.chunk(r, kind, flags, 0, n)
	b.attach(d.buf, n)
	return nil
}

// A description is the content of a BLOCK_STATUS chunk that is being made.
// Neighbours differ.
//
//	context 32 | descriptors, each length 32 | value 32
//	context 32 | count 32 | descriptors, each length 64 | value 64
type description struct {
	buf      *buffer
	used     int // bytes of buf
	extended bool
	count    int   // descriptors
	limit    int   // of them
	start    int64 // of the open descriptor
	pos      int64 // its end so far
	value    uint32
}

func newDescription(r *request, context uint32) *description {
	d := &description{buf: newBuffer(statusBytes), used: 4, extended: r.extended, limit: maxDescribed, start: int64(r.off), pos: int64(r.off)}
	if r.flags&cmdFlagReqOne != 0 {
		d.limit = 1
	}
	if r.extended {
		d.used = 8
	}
	binary.BigEndian.PutUint32(d.buf.b, context)
	return d
}

// extend says that the bytes up to until have a value. It is false when there
// is no room to say so, and then the description is complete.
func (d *description) extend(until int64, value uint32) bool {
	if until <= d.pos {
		return true
	}
	if d.pos > d.start && d.value != value {
		d.put()
	}
	if d.count == d.limit {
		return false
	}
	d.pos, d.value = until, value
	return true
}

// put ends the open descriptor.
func (d *description) put() {
	p := d.buf.b[:d.used]
	if d.extended {
		p = binary.BigEndian.AppendUint64(p, uint64(d.pos-d.start))
		p = binary.BigEndian.AppendUint64(p, uint64(d.value))
	} else {
		p = binary.BigEndian.AppendUint32(p, uint32(d.pos-d.start))
		p = binary.BigEndian.AppendUint32(p, d.value)
	}
	d.used, d.start = len(p), d.pos
	d.count++
}

// finish returns the length of the content.
func (d *description) finish() int {
	if d.extended {
		binary.BigEndian.PutUint32(d.buf.b[4:], uint32(d.count))
	}
	return d.used
}

// allocationOf is base:allocation: data is 0; zeros, and what was never
// written, are HOLE and ZERO.
func allocationOf(device layers.Layer) Context {
	return Context{allocation, func(off, n int64) iter.Seq2[layers.Run, error] {
		return func(yield func(layers.Run, error) bool) {
			pos := off
			nothing := func(until int64) bool {
				return until <= pos || yield(layers.Run{Off: pos, Len: until - pos, Value: stateHole | stateZero}, nil)
			}
			for e, err := range device.Extents(off, n) {
				if err != nil {
					yield(layers.Run{}, err)
					return
				}
				if e = e.Clip(off, n); e.Len == 0 || e.Kind != layers.Data {
					continue
				}
				if !nothing(e.Off) {
					return
				}
				pos = max(pos, e.End())
			}
			nothing(off + n)
		}
	}}
}
