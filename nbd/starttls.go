package nbd

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// ErrTLSRequired is what Server.Open answers for an export that it gives to
// encrypted connections only, when TLSState is nil: "SELECTIVETLS mode".
var ErrTLSRequired = errors.New("TLS is required: begin with STARTTLS")

// startTLS answers STARTTLS and goes over to TLS. What was agreed on before is
// forgotten, as somebody in between may have said it. An error that is not one
// of the option ends the connection.
func (h *handshake) startTLS(data []byte) error {
	switch {
	case h.server.TLS == nil:
		return fmt.Errorf("%w: this server has no TLS", errors.ErrUnsupported)
	case h.secure != nil:
		return fmt.Errorf("%w: TLS has begun already", errInvalid)
	case len(data) > 0:
		return errInvalid
	case len(h.in.waiting()) > 0:
		return fmt.Errorf("%w: bytes in plain text behind STARTTLS", errProtocol)
	}
	h.add(optStartTLS, repAck, nil)
	if err := h.write(h.reply); err != nil {
		return err
	}
	h.reply = h.reply[:0]
	seal := newSealer(h.conn, h.server.TLS)
	if err := seal.secure.HandshakeContext(h.ctx); err != nil {
		return fmt.Errorf("%w: TLS: %w", errProtocol, err)
	}
	h.secure = seal.secure
	h.in.conn = seal.secure
	h.out.secure(seal)
	h.structured, h.extended = false, false
	h.selected, h.contextFor = nil, ""
	h.log = h.log.With("tls", PeerNames(h.ctx))
	return nil
}

// plainRefused says whether an option is refused because TLS has not begun:
// "FORCEDTLS mode".
func (h *handshake) plainRefused(option uint32) bool {
	if h.secure != nil || option == optStartTLS || option == optAbort {
		return false
	}
	return h.server.TLS != nil && h.server.RequireTLS != nil && h.server.RequireTLS(h.conn)
}

// corkBytes is how much a corked connection holds back at most.
const corkBytes = 128 << 10

// A corked connection gathers what a client's TLS writes, which is a system call
// for each record of 16 KiB otherwise.
type corked struct {
	net.Conn
	mu  sync.Mutex // TLS answers to key updates from its reader
	on  bool
	buf []byte
}

func (c *corked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on {
		return c.Conn.Write(p)
	}
	c.buf = append(c.buf, p...)
	if len(c.buf) < corkBytes {
		return len(p), nil
	}
	return len(p), c.flush()
}

func (c *corked) cork() {
	c.mu.Lock()
	c.on = true
	c.mu.Unlock()
}

// uncork sends what was held back.
func (c *corked) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = false
	return c.flush()
}

func (c *corked) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}
