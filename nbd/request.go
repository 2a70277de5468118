package nbd

import "encoding/binary"

// A request is the header of one request.
//
//	magic 32 | flags 16 | command 16 | cookie 64 | offset 64 | length 32
//
// A WRITE is followed by length bytes of payload; nothing else is.
type request struct {
	flags, cmd uint16
	cookie     uint64 // the client's own, given back in the reply
	off        uint64 // bytes
	n          uint32 // bytes
}

// parseRequest decodes the lenRequest bytes of p. It is false if the magic is
// wrong, which leaves no way to find the next request.
func parseRequest(p []byte) (request, bool) {
	_ = p[lenRequest-1]
	return request{
		flags:  binary.BigEndian.Uint16(p[4:]),
		cmd:    binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]),
		off:    binary.BigEndian.Uint64(p[16:]),
		n:      binary.BigEndian.Uint32(p[24:]),
	}, binary.BigEndian.Uint32(p) == magicRequest
}

// changes says whether the request changes bytes of the device.
func (r *request) changes() bool {
	return r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
}

// payload is the number of bytes that follow the request.
func (r *request) payload() int64 {
	if r.cmd == cmdWrite {
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
		return statusBytes
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
	if r.cmd == cmdRead && s.structured {
		allowed |= cmdFlagDF
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
	case r.cmd == cmdBlockStatus && !s.allocation:
		return refusedContext
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
	if r.off <= s.size && uint64(r.n) <= s.size-r.off {
		return false
	}
	s.size = max(s.size, uint64(max(s.device.Size(), 0)))
	return r.off > s.size || uint64(r.n) > s.size-r.off
}
