package nbd

import (
	"encoding/binary"
	"math/bits"
)

// A request is the header of one request, compact or extended.
//
//	magic 32 | flags 16 | command 16 | cookie 64 | offset 64 | length 32 or 64
//
// In the compact form a WRITE is followed by length bytes of payload, and
// nothing else is. In the extended form PAYLOAD_LEN says whether the length is
// that of a payload or the number of bytes to act on. A WRITE must have it; one
// without is taken as if it had, because there are clients that forget it, and
// no other meaning that it could have.
type request struct {
	flags, cmd uint16
	extended   bool   // the form, of the reply too
	contexts   uint32 // BLOCK_STATUS: bit i asks for session.contexts[i]
	cookie     uint64 // the client's own, given back in the reply
	off        uint64 // bytes
	n          uint64 // bytes
}

// parseRequest decodes the header in p, which has the length of its form. It is
// false if the magic is wrong, which leaves no way to find the next request.
func parseRequest(p []byte, extended bool) (request, bool) {
	_ = p[lenRequest-1]
	r := request{
		flags:    binary.BigEndian.Uint16(p[4:]),
		cmd:      binary.BigEndian.Uint16(p[6:]),
		extended: extended,
		cookie:   binary.BigEndian.Uint64(p[8:]),
		off:      binary.BigEndian.Uint64(p[16:]),
	}
	if extended {
		r.n = binary.BigEndian.Uint64(p[24:])
		if r.cmd == cmdWrite {
			r.flags |= cmdFlagPayload
		}
		return r, binary.BigEndian.Uint32(p) == magicExtendedRequest
	}
	r.n = uint64(binary.BigEndian.Uint32(p[24:]))
	return r, binary.BigEndian.Uint32(p) == magicRequest
}

// changes says whether the request changes bytes of the device.
func (r *request) changes() bool {
	return r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
}

// payload is the number of bytes that follow the request; in the extended form
// session.accept has bounded it.
func (r *request) payload() int64 {
	if r.extended && r.flags&cmdFlagPayload != 0 || !r.extended && r.cmd == cmdWrite {
		return int64(r.n)
	}
	return 0
}

// reply is the number of bytes of content that the reply may have.
func (r *request) reply() int64 {
	switch r.cmd {
	case cmdRead:
		return int64(r.n)
	case cmdBlockStatus:
		return statusBytes * int64(bits.OnesCount32(r.contexts))
	}
	return 0
}

// The refusals of check.
var (
	refusedCommand  = &refusal{errnoInval, "unknown command"}
	refusedFlag     = &refusal{errnoInval, "a command flag is unknown or not valid for this command"}
	refusedLate     = &refusal{errnoShutdown, "the server is shutting down"}
	refusedReadOnly = &refusal{errnoPerm, "the export is read-only"}
	refusedRange    = &refusal{errnoInval, "the range goes beyond the end of the export"}
	refusedSpace    = &refusal{errnoNoSpace, "the range goes beyond the end of the export"}
	refusedLarge    = &refusal{errnoInval, "more than 33554432 bytes in one request"}
	refusedContext  = &refusal{errnoInval, "no metadata context was selected for this export"}
	refusedFilter   = &refusal{errnoInval, "the metadata contexts asked for are not some of those that were selected, each once"}
	refusedEmpty    = &refusal{errnoInval, "a block status of nothing"}
	refusedFastZero = &refusal{errnoNotSup, "zeros cannot be written fast without making a hole"}
)

// commandFlags are the flags that each command allows. FUA is valid for all:
// "Command flags".
var commandFlags = [...]uint16{
	cmdRead:        cmdFlagFUA,
	cmdWrite:       cmdFlagFUA,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// check decides, before any payload is read, whether a request may go to the
// device. It returns nil if so. It does not see cmdDisc.
func (s *session) check(r *request) *refusal {
	if int(r.cmd) >= len(commandFlags) {
		return refusedCommand
	}
	allowed := commandFlags[r.cmd]
	switch {
	case r.cmd == cmdRead && s.structured:
		allowed |= cmdFlagDF
	case r.cmd == cmdWrite && r.extended:
		allowed |= cmdFlagPayload
	}
	switch {
	case r.flags&^allowed != 0:
		return refusedFlag
	case s.late.Load():
		return refusedLate
	case r.changes() && s.readOnly:
		return refusedReadOnly
	case r.cmd == cmdFlush:
		return nil // offset and length mean nothing
	case s.beyond(r):
		if r.cmd == cmdWrite || r.cmd == cmdWriteZeroes {
			return refusedSpace
		}
		return refusedRange
	case (r.cmd == cmdRead || r.cmd == cmdWrite) && r.n > maxPayload:
		return refusedLarge
	case r.cmd == cmdBlockStatus && len(s.contexts) == 0:
		return refusedContext
	case r.cmd == cmdBlockStatus && r.contexts == 0:
		return refusedFilter
	case r.cmd == cmdBlockStatus && r.n == 0:
		return refusedEmpty
	case r.flags&(cmdFlagFastZero|cmdFlagNoHole) == cmdFlagFastZero|cmdFlagNoHole:
		return refusedFastZero
	}
	return nil
}

// beyond says whether r ends behind the device's end. A device may have grown:
// the protocol has no message for that, but there are clients that learn of it
// in other ways.
func (s *session) beyond(r *request) bool {
	if r.off <= s.size && r.n <= s.size-r.off {
		return false
	}
	s.size = max(s.size, uint64(max(s.device.Size(), 0)))
	return r.off > s.size || r.n > s.size-r.off
}
