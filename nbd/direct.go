package nbd

import (
	"context"
	"net"
)

// KernelFlags are the transmission flags of an export for a client that is
// told them without a handshake, as Linux's kernel is: "Transmission flags".
func KernelFlags(e *Export) uint64 { return uint64(exportFlags(e)) }

// exportFlags are the transmission flags of an export before anything is
// agreed on.
func exportFlags(e *Export) uint16 {
	flags := flagHasFlags | flagSendFlush | flagSendFUA | flagCanMultiConn | flagSendCache
	if e.ReadOnly {
		return flags | flagReadOnly
	}
	return flags | flagSendTrim | flagSendWriteZeroes | flagSendFastZero
}

// ServeExport serves one connection of a client that knows the export already:
// its first byte is that of a request, and replies are simple ones. Linux's
// kernel is such a client, when it is given a socket. It closes conn, and calls
// e.Close when no request of the connection is being served any more, then
// returns: nil if the client took its leave, otherwise why it ended.
//
// The connection counts for no limit, and Shutdown does not see it: there is no
// refusal that a mounted file system could understand. To end it, close conn
// for reading: what was sent before is answered.
func (s *Server) ServeExport(ctx context.Context, conn net.Conn, e *Export) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := newSession(ctx, s, conn)
	defer t.in.free()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	t.export, t.device, t.readOnly = e, e.Device, e.ReadOnly
	t.size = uint64(max(e.Device.Size(), 0))
	return t.serve()
}
