package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"slices"
	"strconv"
)

// What the client allows a server in a handshake.
const (
	magicOldstyle   = uint64(0x00420281861253) // "Oldstyle negotiation"
	repErrBlockSize = uint32(1<<31 | 8)        // "Option reply types"
	maxOptionReply  = 64 << 10                 // bytes of data
	maxReplies      = 256                      // to one option
)

// shake negotiates everything up to the transmission: the newest that both
// sides speak, with every fallback that the protocol document names.
func (c *Client) shake(ctx context.Context, a Address, contexts []string) error {
	var greeting [18]byte
	if err := c.read(greeting[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	switch {
	case binary.BigEndian.Uint64(greeting[:]) != magicServer:
		return fmt.Errorf("%w: it begins with %x: is it an NBD server?", errBreach, greeting[:8])
	case binary.BigEndian.Uint64(greeting[8:]) == magicOldstyle:
		return errors.New("the server speaks the oldstyle protocol, which is not supported")
	case binary.BigEndian.Uint64(greeting[8:]) != magicOption:
		return fmt.Errorf("%w: greeting %x", errBreach, greeting)
	}
	offered := binary.BigEndian.Uint16(greeting[16:])
	if offered&flagFixedNewstyle == 0 {
		return errors.New("the server does not speak the fixed newstyle protocol")
	}
	// The bits of the client's answer have the same places.
	agreed := offered & (flagFixedNewstyle | flagNoZeroes)
	if _, err := c.conn.Write(binary.BigEndian.AppendUint32(nil, uint32(agreed))); err != nil {
		return err
	}
	if a.TLS {
		if err := c.startTLS(ctx, a); err != nil {
			return err
		}
	}
	if err := c.agreeStructured(); err != nil {
		return err
	}
	if err := c.agreeContexts(a.Export, append([]string{allocation}, contexts...)); err != nil {
		return err
	}
	if err := c.enterExport(a.Export, agreed&flagNoZeroes != 0); err != nil {
		return err
	}
	return c.checkExport()
}

// startTLS goes over to TLS. There is no going on without: who asked for it does
// not want to be talked out of it.
func (c *Client) startTLS(ctx context.Context, a Address) error {
	config, err := clientTLS(a)
	if err != nil {
		return err
	}
	if err := c.option(optStartTLS, nil, nil); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if c.in.Buffered() > 0 {
		return fmt.Errorf("%w: bytes in plain text behind the answer to STARTTLS", errBreach)
	}
	c.cork = &corked{Conn: c.conn}
	secure := tls.Client(c.cork, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.conn = secure
	c.in.Reset(secure)
	return nil
}

// agreeStructured asks for extended headers, or else for structured replies. A
// server may refuse both.
func (c *Client) agreeStructured() error {
	err := c.option(optExtendedHeaders, nil, nil)
	c.extended = err == nil
	if err := unlessRefused(err); err != nil {
		return err
	}
	if !c.extended {
		err = c.option(optStructuredReply, nil, nil)
	}
	c.structured = err == nil
	return unlessRefused(err)
}

// agreeContexts asks for the block status of metadata contexts.
func (c *Client) agreeContexts(export string, names []string) error {
	if !c.structured {
		return nil
	}
	query := appendString(nil, export)
	query = binary.BigEndian.AppendUint32(query, uint32(len(names)))
	for _, name := range names {
		query = appendString(query, name)
	}
	numbers := map[uint32]bool{}
	err := c.option(optSetMetaContext, query, func(kind uint32, data []byte) error {
		if kind != repMetaContext || len(data) < 4 {
			return nil
		}
		name, number := string(data[4:]), binary.BigEndian.Uint32(data)
		if !slices.Contains(names, name) || numbers[number] {
			return fmt.Errorf("%w: context %.40q with number %d", errBreach, name, number)
		}
		c.contexts[name], numbers[number] = number, true
		return nil
	})
	if err != nil {
		clear(c.contexts)
	}
	return unlessRefused(err)
}

// enterExport begins the transmission with GO, or with EXPORT_NAME where the
// server does not know GO.
func (c *Client) enterExport(export string, noZeroes bool) error {
	c.least, c.most = 1, maxPayload
	request := appendString(nil, export)
	request = binary.BigEndian.AppendUint16(request, 1)
	request = binary.BigEndian.AppendUint16(request, infoBlockSize)
	known := false
	err := c.option(optGo, request, func(kind uint32, data []byte) error {
		if kind != repInfo || len(data) < 2 {
			return fmt.Errorf("%w: reply of type %d, %d bytes, to GO", errBreach, kind, len(data))
		}
		switch info, data := binary.BigEndian.Uint16(data), data[2:]; {
		case info == infoExport && len(data) == lenExportReply:
			known = true
			return c.takeExport(data)
		case info == infoBlockSize && len(data) == 12:
			return c.takeBlockSizes(data)
		case info == infoExport || info == infoBlockSize:
			return fmt.Errorf("%w: information %d of %d bytes", errBreach, info, len(data))
		}
		return nil
	})
	var refused *optionRefusal
	switch {
	case err == nil && !known:
		return fmt.Errorf("%w: GO without the size of the export", errBreach)
	case errors.As(err, &refused) && refused.kind == repErrUnsup:
		return c.enterByName(export, noZeroes)
	case err != nil:
		return fmt.Errorf("export %q: %w", export, err)
	}
	return nil
}

// enterByName is EXPORT_NAME, to which the server answers with the export or by
// closing the connection.
func (c *Client) enterByName(export string, noZeroes bool) error {
	if err := c.sendOption(optExportName, []byte(export)); err != nil {
		return err
	}
	reply := make([]byte, lenExportReply, lenExportReply+lenExportPad)
	if !noZeroes {
		reply = reply[:cap(reply)]
	}
	if err := c.read(reply); err != nil {
		return fmt.Errorf("export %q: the server closed the connection (%w): there may be no such export", export, err)
	}
	return c.takeExport(reply[:lenExportReply])
}

func (c *Client) takeExport(data []byte) error {
	size := binary.BigEndian.Uint64(data)
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: an export of %d bytes", errBreach, size)
	}
	c.size, c.flags = int64(size), binary.BigEndian.Uint16(data[8:])
	return nil
}

// takeBlockSizes keeps to "Block size constraints".
func (c *Client) takeBlockSizes(data []byte) error {
	least, preferred, most := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
	if bits.OnesCount32(least) != 1 || least > 64<<10 || bits.OnesCount32(preferred) != 1 || preferred < least ||
		most < least || most != math.MaxUint32 && most%least != 0 {
		return fmt.Errorf("%w: block sizes: least %d, preferred %d, most %d", errBreach, least, preferred, most)
	}
	c.least = int64(least)
	c.most = min(int64(most), maxPayload) // a power of two, so a multiple of least too
	return nil
}

// checkExport refuses what later arithmetic could not bear.
func (c *Client) checkExport() error {
	if c.flags&flagHasFlags == 0 {
		c.flags = 0 // the others mean nothing then
	}
	if c.size%c.least != 0 {
		return fmt.Errorf("%w: the size %d is no multiple of the least block %d", errBreach, c.size, c.least)
	}
	return nil
}

// option sends an option and takes its replies up to the last, which is ACK or
// an error. each, if it is not nil, gets those between. A refusal is an
// *optionRefusal; after any other error the connection is of no use.
func (c *Client) option(option uint32, data []byte, each func(kind uint32, data []byte) error) error {
	if err := c.sendOption(option, data); err != nil {
		return err
	}
	for range maxReplies {
		kind, data, err := c.optionReply(option)
		switch {
		case err != nil:
			return err
		case kind == repAck:
			return nil
		case kind&(1<<31) != 0:
			return refusalOf(kind, data)
		case each == nil:
			return fmt.Errorf("%w: reply of type %d to option %d", errBreach, kind, option)
		}
		if err := each(kind, data); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to option %d", errBreach, maxReplies, option)
}

func (c *Client) sendOption(option uint32, data []byte) error {
	p := binary.BigEndian.AppendUint64(nil, magicOption)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	_, err := c.conn.Write(append(p, data...))
	return err
}

func (c *Client) optionReply(option uint32) (kind uint32, data []byte, err error) {
	var head [20]byte // magic, option, type, length
	if err := c.read(head[:]); err != nil {
		return 0, nil, fmt.Errorf("reply to option %d: %w", option, err)
	}
	magic, of := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
	kind = binary.BigEndian.Uint32(head[12:])
	n := binary.BigEndian.Uint32(head[16:])
	if magic != magicReply || of != option || n > maxOptionReply || kind == repAck && n != 0 {
		return 0, nil, fmt.Errorf("%w: reply %x to option %d", errBreach, head, option)
	}
	data = make([]byte, n)
	if err := c.read(data); err != nil {
		return 0, nil, fmt.Errorf("reply to option %d: %w", option, err)
	}
	return kind, data, nil
}

// read fills p. A connection that ends is an error wherever it does.
func (c *Client) read(p []byte) error {
	_, err := io.ReadFull(c.in, p)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// An optionRefusal is the error reply to an option.
type optionRefusal struct {
	kind  uint32
	text  string // the server's own words; may be empty
	cause error  // what errors.Is finds; nil for most
}

func refusalOf(kind uint32, data []byte) error {
	r := &optionRefusal{kind: kind, text: string(data[:min(len(data), maxString)])}
	switch kind {
	case repErrUnknown:
		r.cause = fs.ErrNotExist
	case repErrPolicy:
		r.cause = fs.ErrPermission
	}
	return r
}

func (r *optionRefusal) Error() string {
	said := ""
	if r.text != "" {
		said = ": " + strconv.Quote(r.text)
	}
	switch r.kind {
	case repErrUnknown:
		return "the server has no such export" + said
	case repErrTLSReqd:
		return "the server wants TLS: use nbds:// or nbds+unix://" + said
	case repErrPolicy:
		return "the server refuses" + said
	case repErrShutdown:
		return "the server is shutting down" + said
	case repErrBlockSize:
		return "the server wants block sizes that it did not tell" + said
	}
	return fmt.Sprintf("the server refuses with error %#x%s", r.kind, said)
}

func (r *optionRefusal) Unwrap() error { return r.cause }

// unlessRefused is err, unless it is a refusal that one can do without.
func unlessRefused(err error) error {
	var refused *optionRefusal
	if errors.As(err, &refused) && refused.kind != repErrTLSReqd && refused.kind != repErrShutdown {
		return nil
	}
	return err
}

func appendString(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}
