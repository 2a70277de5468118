package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// The names of this file are those of the NBD protocol document
// (NetworkBlockDevice/nbd, doc/proto.md), whose sections the comments give;
// those of extended headers are in its branch extension-ext-header.
// Every number on the wire is big endian. The constants that go-nbd has come
// from there; it lacks the rest.

// Handshake magics: "Newstyle negotiation".
const (
	magicServer = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC"
	magicOption = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	magicReply  = protocol.NEGOTIATION_MAGIC_REPLY
)

// Handshake flags, 16 bits from the server; the client answers with the same
// bits in 32: "Handshake flags", "Client flags".
const (
	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)
)

// Options: "Option types".
const (
	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Option replies; errors have the top bit: "Option reply types".
const (
	repAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext = uint32(4)

	repErrUnsup    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy   = uint32(1<<31 | 2)
	repErrInvalid  = uint32(1<<31 | 3)
	repErrTLSReqd  = uint32(1<<31 | 5)
	repErrUnknown  = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown = uint32(1<<31 | 7)
	repErrTooBig   = uint32(1<<31 | 9)
	repErrExtended = uint32(1<<31 | 10) // EXT_HEADER_REQD
)

// Information types of INFO and GO: "NBD_OPT_INFO".
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags, 16 bits: "Transmission flags".
const (
	flagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly        = uint16(1 << 1)
	flagSendFlush       = uint16(1 << 2)
	flagSendFUA         = uint16(1 << 3)
	flagSendTrim        = uint16(1 << 5)
	flagSendWriteZeroes = uint16(1 << 6)
	flagSendDF          = uint16(1 << 7) // only with structured replies
	flagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagSendCache       = uint16(1 << 10)
	flagSendFastZero    = uint16(1 << 11)
	flagStatusPayload   = uint16(1 << 12) // only with extended headers
)

// Transmission magics: "Transmission".
const (
	magicRequest    = protocol.TRANSMISSION_MAGIC_REQUEST
	magicSimple     = protocol.TRANSMISSION_MAGIC_REPLY
	magicStructured = uint32(0x668e33ef)

	// With extended headers these two replace the three above.
	magicExtendedRequest = uint32(0x21e41c71)
	magicExtendedReply   = uint32(0x6e8a278c)
)

// Commands: "Request types".
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Command flags, 16 bits: "Command flags".
const (
	cmdFlagFUA      = uint16(1 << 0)
	cmdFlagNoHole   = uint16(1 << 1) // WRITE_ZEROES: write the zeros, punch nothing
	cmdFlagDF       = uint16(1 << 2) // READ: one content chunk
	cmdFlagReqOne   = uint16(1 << 3) // BLOCK_STATUS: one extent
	cmdFlagFastZero = uint16(1 << 4) // WRITE_ZEROES: fail rather than write the zeros
	cmdFlagPayload  = uint16(1 << 5) // PAYLOAD_LEN: the length is that of a payload
)

// Reply chunks: "Structured reply types" and "Structured reply flags".
const (
	chunkNone        = uint16(0)
	chunkOffsetData  = uint16(1)
	chunkOffsetHole  = uint16(2)
	chunkBlockStatus = uint16(5)
	chunkStatusExt   = uint16(6) // BLOCK_STATUS_EXT, with extended headers
	chunkError       = uint16(1<<15 | 1)
	chunkErrorOffset = uint16(1<<15 | 2)

	chunkDone = uint16(1 << 0) // the last chunk of a reply
)

// Block status flags of base:allocation: "Metadata contexts".
const (
	stateHole = uint32(1 << 0)
	stateZero = uint32(1 << 1)
)

// Errors of replies: "Error values". They happen to be Linux's numbers.
const (
	errnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	errnoIO       = uint32(5)
	errnoNoMem    = uint32(12)
	errnoInval    = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoNotSup   = uint32(95)
	errnoShutdown = uint32(108)
)

// Lengths of fixed parts, in bytes.
const (
	lenOptionHeader = 16      // magic, option, length
	lenRequest      = 28      // magic, flags, type, cookie, offset, length
	lenSimple       = 16      // magic, error, cookie
	lenChunk        = 20      // magic, flags, type, cookie, length
	lenExtended     = 32      // magic, flags, type, cookie, offset, length; both ways
	lenExportReply  = 10      // size, transmission flags
	lenExportPad    = 124     // zeros after it, unless NO_ZEROES
	maxString       = 4 << 10 // "Values": a string has at most 4096 bytes
)

// The block sizes announced: any request is served, whole blocks are best.
const (
	minBlock       = 1
	preferredBlock = 4 << 10
	maxPayload     = 32 << 20 // of one READ or WRITE; the document asks for 32 MiB at least
)

// allocation is the metadata context that every export has.
const allocation = "base:allocation"
