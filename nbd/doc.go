// Package nbd serves block devices to NBD clients, and is a client itself.
//
// # Concepts
//
// A [Server] serves listeners. Each connection is a session: a handshake, in
// which the client asks for an [Export] by name and agrees on features, then
// the transmission of requests and replies until one side leaves. An export is
// a [Device], which is a layers.Layer that can be written; the package knows no
// other storage. docs/nbd.md says what of the protocol is spoken.
//
//	accept ─► handshake ──GO, EXPORT_NAME──► transmission ──DISC, Shutdown──► answer what
//	              │                               │                           was accepted
//	              └──ABORT, breach, time──────────┴──breach, close──────────► leave the export
//
// # Use
//
//	server := &nbd.Server{
//		Open: func(ctx context.Context, name string) (*nbd.Export, error) {
//			return &nbd.Export{Name: name, Device: device}, nil
//		},
//	}
//	l, err := net.Listen("unix", path)
//	…
//	err = server.Serve(ctx, l)
//
// # Goroutines
//
// A session has a reader, which is its own goroutine, up to sixteen workers and
// one goroutine for a client that reads slowly; the latter are started when
// they are first needed. The reader takes all the requests that one read of the
// socket brought and serves the small reads and all writes among them itself: a
// large write piece by piece, while its payload arrives. What may take long goes
// to the workers. Replies gather and leave with one writev.
//
// The reader waits for three things: the client's bytes, room in the bound of
// requests in flight, and the requests that it serves. It never waits for the
// client to read replies as long as that bound is not reached, so a client may
// send all its requests before it reads one reply.
//
// # What is safe
//
// A device's methods are called concurrently, from the sessions and from the
// workers of each. Within a session, requests that overlap run in the order in
// which they came if one of them writes; all others in any order, and between
// sessions there is no order. A flush covers all writes answered before it, on
// any connection: that is the contract of Device, and why CAN_MULTI_CONN is
// offered.
//
// A panic in a device, or in List, Open or Close, is logged and answered as an
// error; other requests go on.
//
// # Client
//
// A [Client] is an export of any server as a Device: [Dial], then call its
// methods from as many goroutines as there shall be requests in flight. It has
// nothing in common with the server but the numbers of the protocol. A dead
// connection stays dead; who wants another dials again.
//
// # Locks
//
// Server.mu is taken before outbox.mu, and that before budget.mu.
// schedule.mu and outbox.mu are never held together, nor while the device or
// the socket is called. Server.mu is not held while a session works.
// Client.partial is taken before a request is sent; Client.mu is innermost.
//
// # Hazards
//
//  1. The payload of a WRITE that the reader serves lies in the input's buffer: it
//     must be used before the next read of the connection.
//  2. A batch belongs to who fills it until it is handed to the outbox, and its
//     buffers go back to their pools when it is sent. Nothing may point into
//     them after that.
//  3. The charge of a request is taken before its buffers are, and given back
//     when its reply has left. A path that forgets it stalls the session.
//  4. Replies are gathered only while there is input: input.beforeRead must send
//     them before every read that may wait.
//  5. Workers wait for a client that is behind with reading replies
//     (outbox.pace). Whoever waits for workers and must not wait for the client
//     calls outbox.press first.
package nbd
