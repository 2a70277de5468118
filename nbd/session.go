package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// quickBytes is the longest READ or WRITE that counts as small, in bytes.
	quickBytes = 64 << 10

	// batchBytes is how much the reader gathers before it sends, in bytes.
	// It is below the usual size of a socket's send buffer.
	batchBytes = 160 << 10

	// requestBytes is what a request weighs beside its payload and content,
	// in bytes.
	requestBytes = 256

	// linger bounds the wait for a client that has said goodbye to take the
	// replies it is owed.
	linger = 30 * time.Second
)

// A session is one connection. Its goroutine is the reader: it negotiates,
// then parses requests, serves what is quick itself and gives the rest to the
// schedule's workers.
type session struct {
	server *Server
	ctx    context.Context // ends when the connection is torn down
	conn   net.Conn        // the socket
	secure *tls.Conn       // over conn, once TLS has begun
	log    *slog.Logger
	in     *input
	out    outbox
	tasks  schedule

	// Agreed in the handshake.
	structured bool      // structured replies
	extended   bool      // extended headers; structured is true then
	contexts   []Context // selected for the export; the number of each is its index + 1
	export     *Export
	device     Device
	size       uint64 // bytes, of the device when it was last asked
	readOnly   bool

	// Of the reader.
	request request
	counted int64  // requests since the server's count was raised
	batch   *batch // replies that it has not sent
	pace    pace

	began time.Time   // of the connection
	known atomic.Bool // it has an export: GO or EXPORT_NAME has come
	left  bool        // it was closed to make room; guarded by Server.mu

	late     atomic.Bool // Shutdown was called: no new requests
	failures atomic.Uint64
}

func newSession(ctx context.Context, server *Server, conn net.Conn) *session {
	s := &session{
		server: server,
		conn:   conn,
		began:  time.Now(),
		log:    server.log().With("client", clientName(conn)),
	}
	s.ctx = context.WithValue(ctx, sessionKey{}, s)
	s.in = newInput(conn)
	s.out.init(conn, server.inFlight())
	s.tasks.init(s.serveTask)
	return s
}

// clientName names the peer for the log; unix sockets have no useful address.
func clientName(conn net.Conn) string {
	if a := conn.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "local"
}

// run serves the connection until it ends, and closes it.
func (s *session) run() {
	defer s.in.free()
	defer s.close()
	s.conn.SetDeadline(time.Now().Add(s.server.handshakeTimeout()))
	if err := s.negotiate(); err != nil {
		s.logEnd("nbd: handshake ended", err)
		s.out.close()
		return
	}
	s.conn.SetDeadline(time.Time{})
	s.serve()
}

// close takes leave of the client, as far as TLS has a way to.
func (s *session) close() {
	if s.secure != nil {
		s.secure.Close()
	}
	s.conn.Close()
}

// serve is the transmission and what comes after it. It returns why it ended,
// nil if the client left.
func (s *session) serve() error {
	s.log = s.log.With("export", s.export.Name)
	s.log.Debug("nbd: export opened", "size", s.size, "read_only", s.readOnly)
	s.in.widen()
	s.in.beforeRead = s.sendBatch
	s.batch = newBatch()
	if s.late.Load() {
		s.hurry() // Shutdown came before the deadline was taken off
	}
	err := s.transmit()
	s.finish()
	err = cmp.Or(err, s.out.lost())
	s.logEnd("nbd: connection ended", err)
	return err
}

// logEnd tells why a connection ended. A client that goes is nothing special.
func (s *session) logEnd(text string, err error) {
	if errors.Is(err, errProtocol) {
		s.warn(text, "reason", err)
		return
	}
	s.log.Debug(text, "reason", err)
}

// warn logs what any stranger can cause, as often as the log bears it.
func (s *session) warn(text string, args ...any) {
	ok, leftOut := s.server.flood.pass(time.Now())
	if !ok {
		return
	}
	if leftOut > 0 {
		args = append(args, "left_out", leftOut)
	}
	s.log.Warn(text, args...)
}

// gone says whether the connection was torn down, so that nobody waits for a
// reply.
func (s *session) gone() bool { return s.ctx.Err() != nil }

// hurry wakes the reader from a read.
func (s *session) hurry() { s.conn.SetReadDeadline(time.Unix(1, 0)) }

// errProtocol is a breach of the protocol after which there is no going on.
var errProtocol = errors.New("protocol breach")

// transmit serves requests until the client leaves, which is nil for DISC, or
// Shutdown has let the last one finish.
func (s *session) transmit() error {
	closing := false
	head := lenRequest
	if s.extended {
		head = lenExtended
	}
	for {
		if err := s.in.need(head); err != nil {
			if s.late.Load() && !closing && errors.Is(err, os.ErrDeadlineExceeded) {
				closing = true
				s.conn.SetReadDeadline(time.Time{})
				go func() { // refuse requests until the accepted ones are done
					s.tasks.drain()
					s.hurry()
				}()
				continue
			}
			return err
		}
		var ok bool
		if s.request, ok = parseRequest(s.in.take(head), s.extended); !ok {
			return fmt.Errorf("%w: a request without its magic", errProtocol)
		}
		if s.request.cmd == cmdDisc {
			return nil
		}
		s.counted++
		if err := s.accept(&s.request); err != nil {
			return err
		}
	}
}

// accept refuses, serves or schedules one request.
func (s *session) accept(r *request) error {
	if r.extended && r.flags&cmdFlagPayload != 0 && r.n > maxPayload {
		return fmt.Errorf("%w: a payload of %d bytes", errProtocol, r.n)
	}
	if r.cmd == cmdBlockStatus {
		if err := s.takeFilter(r); err != nil {
			return err
		}
	}
	if why := s.check(r); why != nil {
		if err := s.in.skip(r.payload()); err != nil {
			return err
		}
		s.refuse(r, why, s.room())
		return nil
	}
	if s.quick(r) {
		payload, err := s.quickPayload(r)
		if err != nil {
			return err
		}
		s.perform(r, payload, s.room())
		return nil
	}
	if s.streams(r) {
		return s.stream(r)
	}
	return s.schedule(r)
}

// quick says whether the reader serves r at once. Small reads and writes
// are, unless the device has turned out to be slow, or a worker is at the same
// bytes.
func (s *session) quick(r *request) bool {
	small := (r.cmd == cmdRead || r.cmd == cmdWrite) && r.n <= quickBytes && r.flags&cmdFlagFUA == 0
	if !small || s.export.Remote && r.cmd == cmdRead {
		return false
	}
	if s.pace.slow() && !s.alone(r) {
		return false
	}
	return !s.tasks.mustWait(r)
}

// alone says whether nothing else of this connection waits: then handing r to
// a worker would gain nothing.
func (s *session) alone(r *request) bool {
	return int64(len(s.in.waiting())) <= r.payload() && !s.tasks.busy()
}

// quickPayload returns the payload of r where it has arrived. It is valid until
// the next read.
func (s *session) quickPayload(r *request) ([]byte, error) {
	if r.cmd != cmdWrite {
		return nil, nil
	}
	if err := s.in.need(int(r.n)); err != nil {
		return nil, err
	}
	return s.in.take(int(r.n)), nil
}

// room returns the reader's batch with room for one more reply.
func (s *session) room() *batch {
	if s.batch.full() || s.batch.bytes >= batchBytes {
		s.sendBatch()
	}
	if s.pace.counts() || len(s.in.waiting()) > 0 { // one request alone holds up nobody, and the clock costs
		s.pace.tick()
	}
	s.batch.charge += requestBytes
	return s.batch
}

// sendBatch sends what the reader has gathered.
func (s *session) sendBatch() {
	s.pace.stop()
	s.server.requests.Add(s.counted)
	s.counted = 0
	if s.batch.empty() {
		return
	}
	b := s.batch
	s.batch = newBatch()
	b.charge += int64(b.bytes)
	s.out.sendInline(b)
}

// schedule gives r to a worker; a large read that is alone stays with the
// reader.
func (s *session) schedule(r *request) error {
	charge := requestBytes + r.payload() + r.reply()
	s.sendBatch()
	if !s.out.acquire(charge) {
		return net.ErrClosed
	}
	var payload *buffer
	if r.payload() > 0 {
		payload = newBuffer(int(r.payload()))
		s.out.receiving.Store(time.Now().UnixNano())
		err := s.in.readFull(payload.b[:r.n])
		s.out.receiving.Store(0)
		if err != nil {
			payload.free()
			s.out.release(charge)
			return err
		}
	}
	if !s.keeps(r) {
		s.addTask(r, payload, charge)
		return nil
	}
	b := s.performAlone(r, payload, charge)
	s.out.sendAcquired(b)
	return nil
}

// addTask gives r to the workers, and sees to it that none of them waits for the
// client while the reader waits for them.
func (s *session) addTask(r *request, payload *buffer, charge int64) {
	full := s.tasks.full()
	if full {
		s.out.press(true)
	}
	s.tasks.add(r, payload, charge)
	if full {
		s.out.press(false)
	}
}

// keeps says whether the reader serves a request that may take a while, since
// there is nothing else to do.
func (s *session) keeps(r *request) bool {
	if len(s.in.waiting()) > 0 || s.tasks.busy() {
		return false
	}
	return (r.cmd == cmdRead || r.cmd == cmdBlockStatus) && !s.export.Remote
}

// performAlone serves r with a batch of its own.
func (s *session) performAlone(r *request, payload *buffer, charge int64) *batch {
	b := newBatch()
	b.charge = charge
	if payload == nil {
		s.perform(r, nil, b)
		return b
	}
	s.perform(r, payload.b[:r.n], b)
	payload.free()
	return b
}

// serveTask is what a worker does.
func (s *session) serveTask(t *task) {
	if t.cmd == cmdRead && t.n > quickBytes {
		s.out.pace()
	}
	s.out.sendPatient(s.performAlone(&t.request, t.payload, t.charge))
}

// finish lets the accepted requests end and their replies leave, and leaves the
// export.
func (s *session) finish() {
	s.conn.SetWriteDeadline(time.Now().Add(linger))
	s.sendBatch()
	s.tasks.close()
	s.out.close()
	if s.late.Load() {
		if err := s.guard("flush", s.flush); err != nil {
			s.log.Error("nbd: flush at shutdown failed", "error", err)
		}
	}
	s.batch.free()
	s.closeExport(s.export)
}

// closeExport tells the owner of an export that the session has left it.
func (s *session) closeExport(e *Export) {
	if e.Close == nil {
		return
	}
	if err := s.guard("close export", e.Close); err != nil {
		s.log.Error("nbd: close export", "export", e.Name, "error", err)
	}
}

// guard runs code of the export's owner and turns its panic into an error: it
// must not end the other sessions.
func (s *session) guard(act string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("nbd: panic", "act", act, "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: %w", act, errPanic)
		}
	}()
	return f()
}
