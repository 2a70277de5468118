package nbd

import (
	"encoding/binary"
	"sync"
)

// The room in a batch. One reply takes at most replyHead bytes and replySegs
// segments; a batch is full when the next might not fit.
const (
	batchHead = 8 << 10
	batchSegs = 512
	replyHead = 3 << 10
	replySegs = 2*maxRuns + 2
)

// maxText bounds the text of an error chunk, in bytes.
const maxText = 512

// A batch is a row of whole replies that go out together. Headers lie in the
// batch itself, payloads in the buffers they were read into.
type batch struct {
	head   [batchHead]byte
	used   int // of head
	segs   []segment
	bytes  int   // sum over segs
	charge int64 // to give back to the outbox when sent
}

// A segment is bytes to send. If buf is nil they lie in the batch's head.
type segment struct {
	data []byte
	buf  *buffer
}

var batches = sync.Pool{New: func() any { return &batch{segs: make([]segment, 0, batchSegs)} }}

func newBatch() *batch { return batches.Get().(*batch) }

// free gives the batch and its buffers back.
func (b *batch) free() {
	b.rewind(mark{})
	b.charge = 0
	batches.Put(b)
}

// full says that one more reply might not fit.
func (b *batch) full() bool {
	return b.used+replyHead > batchHead || len(b.segs)+replySegs > batchSegs
}

func (b *batch) empty() bool { return len(b.segs) == 0 }

// A mark is a state of a batch to go back to.
type mark struct{ used, segs, bytes, last int }

func (b *batch) mark() mark {
	m := mark{used: b.used, segs: len(b.segs), bytes: b.bytes}
	if m.segs > 0 {
		m.last = len(b.segs[m.segs-1].data)
	}
	return m
}

// rewind takes out what was added since m.
func (b *batch) rewind(m mark) {
	for i := m.segs; i < len(b.segs); i++ {
		if b.segs[i].buf != nil {
			b.segs[i].buf.free()
		}
		b.segs[i] = segment{}
	}
	b.used, b.segs, b.bytes = m.used, b.segs[:m.segs], m.bytes
	if m.segs > 0 {
		last := &b.segs[m.segs-1]
		last.data = last.data[:m.last]
	}
}

// grow adds n bytes of head and returns them. Neighbours share a segment.
func (b *batch) grow(n int) []byte {
	p := b.head[b.used : b.used+n]
	b.used += n
	b.bytes += n
	if i := len(b.segs) - 1; i >= 0 && b.segs[i].buf == nil {
		last := &b.segs[i]
		last.data = last.data[:len(last.data)+n]
		return p
	}
	b.segs = append(b.segs, segment{data: b.head[b.used-n : b.used : batchHead]})
	return p
}

// attach adds the first n bytes of buf, which the batch owns from now on.
func (b *batch) attach(buf *buffer, n int) {
	b.segs = append(b.segs, segment{data: buf.b[:n], buf: buf})
	b.bytes += n
}

// absorb moves the replies of c to the end of b, if they fit in the room of one
// reply; then c is empty. A queue of many single replies stays small that way.
func (b *batch) absorb(c *batch) bool {
	if b.full() || c.used > replyHead || len(c.segs) > replySegs {
		return false
	}
	for i, s := range c.segs {
		if s.buf == nil {
			copy(b.grow(len(s.data)), s.data)
		} else {
			b.segs = append(b.segs, s)
			b.bytes += len(s.data)
		}
		c.segs[i] = segment{}
	}
	b.charge += c.charge
	c.segs, c.used, c.bytes, c.charge = c.segs[:0], 0, 0, 0
	return true
}

// success adds the reply to a request that has nothing to say but that it was
// done.
func (b *batch) success(r *request) {
	if r.extended {
		b.chunk(r, chunkNone, chunkDone, 0, 0)
	} else {
		b.simple(r, 0)
	}
}

// simple adds a simple reply without payload. The extended form has none.
//
//	magic 32 | error 32 | cookie 64
func (b *batch) simple(r *request, errno uint32) {
	p := b.grow(lenSimple)
	binary.BigEndian.PutUint32(p, magicSimple)
	binary.BigEndian.PutUint32(p[4:], errno)
	binary.BigEndian.PutUint64(p[8:], r.cookie)
}

// chunk adds the header of a reply chunk with n bytes of payload, the first
// inHead of which lie in the head and are returned.
//
//	magic 32 | flags 16 | type 16 | cookie 64 | length 32
//	magic 32 | flags 16 | type 16 | cookie 64 | offset of the request 64 | length 64
func (b *batch) chunk(r *request, kind, flags uint16, inHead, n int) []byte {
	size, magic := lenChunk, magicStructured
	if r.extended {
		size, magic = lenExtended, magicExtendedReply
	}
	p := b.grow(size + inHead)
	binary.BigEndian.PutUint32(p, magic)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], r.cookie)
	if r.extended {
		binary.BigEndian.PutUint64(p[16:], r.off)
		binary.BigEndian.PutUint64(p[24:], uint64(n))
	} else {
		binary.BigEndian.PutUint32(p[16:], uint32(n))
	}
	return p[size:]
}

// data adds n bytes of content at off.
func (b *batch) data(r *request, flags uint16, off int64, buf *buffer, n int) {
	p := b.chunk(r, chunkOffsetData, flags, 8, 8+n)
	binary.BigEndian.PutUint64(p, uint64(off))
	b.attach(buf, n)
}

// hole adds a chunk that says that n bytes at off are zero.
func (b *batch) hole(r *request, flags uint16, off, n int64) {
	p := b.chunk(r, chunkOffsetHole, flags, 12, 12)
	binary.BigEndian.PutUint64(p, uint64(off))
	binary.BigEndian.PutUint32(p[8:], uint32(n))
}

// failure adds the last chunk of a structured reply that failed.
func (b *batch) failure(r *request, errno uint32, text string) {
	text = clip(text, maxText)
	p := b.chunk(r, chunkError, chunkDone, 6+len(text), 6+len(text))
	putError(p, errno, text)
}

// failureAt is failure for a reply whose content before off is good.
func (b *batch) failureAt(r *request, errno uint32, text string, off int64) {
	text = clip(text, maxText)
	n := 6 + len(text) + 8
	p := b.chunk(r, chunkErrorOffset, chunkDone, n, n)
	putError(p, errno, text)
	binary.BigEndian.PutUint64(p[n-8:], uint64(off))
}

func putError(p []byte, errno uint32, text string) {
	binary.BigEndian.PutUint32(p, errno)
	binary.BigEndian.PutUint16(p[4:], uint16(len(text)))
	copy(p[6:], text)
}

// clip shortens s to at most n bytes without cutting a character of it.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 { // a continuation byte of UTF-8
		n--
	}
	return s[:n]
}
