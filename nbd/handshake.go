package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"
)

// The bounds of a handshake. The time is bounded by Server.HandshakeTimeout.
const (
	maxOptions    = 4096     // in one handshake
	maxOptionData = 64 << 10 // bytes that are looked at; larger options are refused
	maxOptionSkip = 1 << 20  // bytes of a refused option that are read over
)

var (
	errAborted = errors.New("the client aborted the negotiation")
	errInvalid = errors.New("the option's data is malformed")
	errTooBig  = errors.New("the option's data is too long")

	// errExtended is the answer to who wants less than was agreed on:
	// "NBD_OPT_STRUCTURED_REPLY".
	errExtended = errors.New("extended headers were agreed on already")
)

// A handshake is the state of a negotiation that ends with it.
type handshake struct {
	*session
	noZeroes   bool
	contextFor string   // the export for which contexts were selected
	selected   []string // their names, in order; see session.contexts
	reply      []byte   // option replies, gathered until the option is done
}

// negotiate speaks the fixed newstyle handshake. It returns nil when an export
// was agreed on and opened.
func (s *session) negotiate() error {
	h := &handshake{session: s}
	if err := h.greet(); err != nil {
		return err
	}
	for range maxOptions {
		done, err := h.option()
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d options", errProtocol, maxOptions)
}

// greet exchanges the flags.
//
//	server: NBDMAGIC 64 | IHAVEOPT 64 | handshake flags 16
//	client: client flags 32
func (h *handshake) greet() error {
	var p []byte
	p = binary.BigEndian.AppendUint64(p, magicServer)
	p = binary.BigEndian.AppendUint64(p, magicOption)
	p = binary.BigEndian.AppendUint16(p, flagFixedNewstyle|flagNoZeroes)
	if err := h.write(p); err != nil {
		return err
	}
	if err := h.in.need(4); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(h.in.take(4))
	if flags&^uint32(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: unknown client flags %#x", errProtocol, flags)
	}
	h.noZeroes = flags&uint32(flagNoZeroes) != 0
	return nil
}

// option reads one option and answers it. It is true when transmission begins.
//
//	IHAVEOPT 64 | option 32 | length 32 | data
func (h *handshake) option() (bool, error) {
	if err := h.in.need(lenOptionHeader); err != nil {
		return false, err
	}
	p := h.in.take(lenOptionHeader)
	if binary.BigEndian.Uint64(p) != magicOption {
		return false, fmt.Errorf("%w: an option without its magic", errProtocol)
	}
	option, n := binary.BigEndian.Uint32(p[8:]), binary.BigEndian.Uint32(p[12:])
	plain := h.plainRefused(option)
	if option == optExportName {
		if plain {
			return false, fmt.Errorf("%w: EXPORT_NAME without TLS", errProtocol)
		}
		return true, h.exportName(n)
	}
	h.reply = h.reply[:0]
	data, err := h.optionData(option, n)
	if err != nil {
		return false, err
	}
	done := false
	switch {
	case int(n) != len(data):
		err = errTooBig
	case plain:
		err = ErrTLSRequired
	case h.late.Load():
		err = errShutdown
	default:
		done, err = h.answer(option, data)
	}
	if errors.Is(err, errProtocol) {
		return false, err
	}
	if err != nil && err != errAborted {
		h.answerError(option, err)
		err = nil
	}
	if werr := h.write(h.reply); werr != nil {
		if done {
			h.closeExport(h.export)
		}
		return false, werr
	}
	return done, err
}

// write sends p, encrypted if TLS has begun.
func (h *handshake) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := h.out.conn.Write(p)
	return err
}

// optionData reads the data of an option, or over it if it is too long or
// nobody wants it; then it returns nothing.
func (h *handshake) optionData(option, n uint32) ([]byte, error) {
	if n > maxOptionData {
		if n > maxOptionSkip {
			return nil, fmt.Errorf("%w: option %d with %d bytes", errProtocol, option, n)
		}
		return nil, h.in.skip(int64(n))
	}
	data := make([]byte, n)
	return data, h.in.readFull(data)
}

// answer appends the replies to an option, except an error. It is true when
// transmission begins.
func (h *handshake) answer(option uint32, data []byte) (bool, error) {
	switch option {
	case optAbort:
		h.add(option, repAck, nil)
		return false, errAborted
	case optList:
		return false, h.list(data)
	case optInfo, optGo:
		err := h.info(option, data)
		return option == optGo && err == nil, err
	case optStructuredReply, optExtendedHeaders:
		if len(data) > 0 {
			return false, errInvalid
		}
		if h.extended && option == optStructuredReply {
			return false, errExtended
		}
		h.structured, h.extended = true, option == optExtendedHeaders
		h.add(option, repAck, nil)
		return false, nil
	case optListMetaContext, optSetMetaContext:
		return false, h.metaContext(option, data)
	case optStartTLS:
		return false, h.startTLS(data)
	}
	return false, errors.ErrUnsupported
}

// answerError replaces the replies to an option by an error with a text.
func (h *handshake) answerError(option uint32, err error) {
	kind := optionError(err)
	switch {
	case errors.Is(err, errInvalid):
		kind = repErrInvalid
	case errors.Is(err, errTooBig):
		kind = repErrTooBig
	case errors.Is(err, errExtended):
		kind = repErrExtended
	case errors.Is(err, errors.ErrUnsupported):
		kind = repErrUnsup
	}
	h.reply = h.reply[:0]
	h.add(option, kind, []byte(clip(err.Error(), maxString)))
}

// add appends one option reply.
//
//	magic 64 | option 32 | type 32 | length 32 | data
func (h *handshake) add(option, kind uint32, data []byte) {
	h.reply = binary.BigEndian.AppendUint64(h.reply, magicReply)
	h.reply = binary.BigEndian.AppendUint32(h.reply, option)
	h.reply = binary.BigEndian.AppendUint32(h.reply, kind)
	h.reply = binary.BigEndian.AppendUint32(h.reply, uint32(len(data)))
	h.reply = append(h.reply, data...)
}

// list answers LIST with one reply for each export.
func (h *handshake) list(data []byte) error {
	if len(data) > 0 {
		return errInvalid
	}
	exports, err := h.listings()
	if err != nil {
		return err
	}
	for _, e := range exports {
		p := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		p = append(p, e.Name...)
		p = append(p, clip(e.Description, maxString)...)
		h.add(optList, repServer, p)
	}
	h.add(optList, repAck, nil)
	return nil
}

// listings asks the owner for the exports, without those whose names cannot be
// told.
func (h *handshake) listings() ([]Listing, error) {
	if h.server.List == nil {
		return nil, nil
	}
	var exports []Listing
	err := h.guard("list exports", func() (err error) {
		exports, err = h.server.List(h.ctx)
		return err
	})
	return slices.DeleteFunc(slices.Clone(exports), func(e Listing) bool { return !validName(e.Name) }), err
}

// info answers INFO and GO. After a GO that it answers without an error, the
// session has its export.
//
//	name length 32 | name | count 16 | information types, 16 each
func (h *handshake) info(option uint32, data []byte) error {
	name, rest, err := cutString(data)
	if err != nil {
		return err
	}
	if len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return errInvalid
	}
	export, err := h.open(name)
	if err != nil {
		return err
	}
	h.describeExport(option, export, name, rest[2:])
	if option == optInfo {
		h.closeExport(export.Export)
	} else {
		h.enter(export, name)
	}
	h.add(option, repAck, nil)
	return nil
}

// describeExport appends the information replies: always the size and flags,
// the rest if asked for.
func (h *handshake) describeExport(option uint32, e offer, name string, wanted []byte) {
	p := binary.BigEndian.AppendUint16(nil, infoExport)
	h.add(option, repInfo, h.appendExport(p, e, name))
	var told [4]bool
	for ; len(wanted) > 0; wanted = wanted[2:] {
		kind := binary.BigEndian.Uint16(wanted)
		if int(kind) >= len(told) || told[kind] {
			continue
		}
		told[kind] = true
		p := binary.BigEndian.AppendUint16(nil, kind)
		switch kind {
		case infoName:
			p = append(p, clip(e.Name, maxString)...)
		case infoDescription:
			p = append(p, clip(e.Description, maxString)...)
		case infoBlockSize:
			p = binary.BigEndian.AppendUint32(p, minBlock)
			p = binary.BigEndian.AppendUint32(p, preferredBlock)
			p = binary.BigEndian.AppendUint32(p, maxPayload)
		default:
			continue
		}
		h.add(option, repInfo, p)
	}
}

// appendExport appends size and transmission flags of e, asked for as name.
func (h *handshake) appendExport(p []byte, e offer, name string) []byte {
	flags := exportFlags(e.Export)
	if h.structured {
		flags |= flagSendDF
	}
	if h.extended && len(h.selected) > 0 && h.contextFor == name {
		flags |= flagStatusPayload
	}
	p = binary.BigEndian.AppendUint64(p, e.size)
	return binary.BigEndian.AppendUint16(p, flags)
}

// exportName answers EXPORT_NAME, which knows no errors: it ends the
// connection or begins transmission.
func (h *handshake) exportName(n uint32) error {
	if h.extended {
		return fmt.Errorf("%w: EXPORT_NAME with extended headers", errProtocol)
	}
	if n > maxString {
		return fmt.Errorf("%w: an export name of %d bytes", errProtocol, n)
	}
	name := make([]byte, n)
	if err := h.in.readFull(name); err != nil {
		return err
	}
	if !validName(string(name)) {
		return fmt.Errorf("%w: the export name is not UTF-8", errProtocol)
	}
	export, err := h.open(string(name))
	if err != nil {
		return err
	}
	h.enter(export, string(name))
	p := h.appendExport(nil, export, string(name))
	if !h.noZeroes {
		p = append(p, make([]byte, lenExportPad)...)
	}
	if err := h.write(p); err != nil {
		h.closeExport(h.export)
		return err
	}
	return nil
}

// enter makes e, asked for as name, the session's export.
func (h *handshake) enter(e offer, name string) {
	h.known.Store(true)
	h.export, h.device = e.Export, e.Device
	h.size, h.readOnly = e.size, e.ReadOnly
	if h.contextFor != name {
		return
	}
	for _, name := range h.selected {
		h.contexts = append(h.contexts, e.context(name))
	}
}

// cutString takes a string with a length of 32 bits from the front of data.
func cutString(data []byte) (string, []byte, error) {
	if len(data) < 4 {
		return "", nil, errInvalid
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	switch {
	case uint64(n) > uint64(len(data)):
		return "", nil, errInvalid
	case n > maxString:
		return "", nil, errTooBig
	case !validName(string(data[:n])):
		return "", nil, errInvalid
	}
	return string(data[:n]), data[n:], nil
}

// cutQueries takes all of data as a counted list of strings.
func cutQueries(data []byte) ([]string, error) {
	if len(data) < 4 {
		return nil, errInvalid
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	var queries []string
	for range count { // ends when data does: a query takes at least 4 bytes
		query, rest, err := cutString(data)
		if err != nil {
			return nil, err
		}
		queries, data = append(queries, query), rest
	}
	if len(data) > 0 {
		return nil, errInvalid
	}
	return queries, nil
}

// validName says whether s may be a string of the protocol: UTF-8 without NUL.
func validName(s string) bool {
	return len(s) <= maxString && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// An offer is an export that is open, with its size in bytes.
type offer struct {
	*Export
	size uint64
}

// open asks the owner for an export.
func (h *handshake) open(name string) (offer, error) {
	var o offer
	err := h.guard("open export", func() (err error) {
		if h.server.Open == nil {
			return fmt.Errorf("export %q: %w", name, fs.ErrNotExist)
		}
		if o.Export, err = h.server.Open(h.ctx, name); err != nil {
			return err
		}
		size := o.Device.Size()
		if size < 0 {
			h.closeExport(o.Export)
			return fmt.Errorf("export %q: negative size", name)
		}
		o.size = uint64(size)
		return nil
	})
	return o, err
}
