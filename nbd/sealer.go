package nbd

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// recordBytes is the content of a full record of TLS: RFC 8446, section 5.1.
	recordBytes = 16 << 10

	// sealBytes is how much is encrypted before it is sent. It stays in the
	// processor's cache.
	sealBytes = 128 << 10
)

// A sealer is what lies below TLS on a server's connection. While the outbox
// sends it keeps the records that TLS writes, for two reasons: many of them go
// out with one system call, and encrypting never waits for the client, so that
// the reader may do it. Otherwise it passes on what is written.
type sealer struct {
	net.Conn
	secure *tls.Conn       // over this
	raw    syscall.RawConn // nil if Conn is no socket; then every write may wait

	mu   sync.Mutex
	held bool   // buf is being sent: what TLS writes goes behind it
	buf  []byte // records; TLS adds some of its own from its reader, for key updates

	// Of the outbox's sender.
	sent   int // of buf
	plain  [recordBytes]byte
	filled int // of plain

	// Of send.
	left    []byte
	patient bool
	errno   syscall.Errno
	step    func(fd uintptr) bool // sendSome, bound once

	progress *atomic.Int64 // outbox.progress
}

func newSealer(conn net.Conn, config *tls.Config) *sealer {
	s := &sealer{Conn: conn}
	s.secure = tls.Server(s, config)
	s.step = s.sendSome
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	return s
}

// Write is called by TLS.
func (s *sealer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return s.Conn.Write(p)
	}
	s.buf = append(s.buf, p...)
	return len(p), nil
}

// hold keeps the records that come, until pass has sent them.
func (s *sealer) hold() {
	s.mu.Lock()
	s.held = true
	s.mu.Unlock()
}

// pass sends the records that are held and holds no more. It is false if it
// would have to wait and may not.
func (s *sealer) pass(patient bool) (bool, error) {
	for {
		s.mu.Lock()
		left := s.buf[s.sent:] // what is added meanwhile comes behind it
		if len(left) == 0 {
			s.buf, s.sent, s.held = s.buf[:0], 0, false
			s.mu.Unlock()
			return true, nil
		}
		s.mu.Unlock()
		n, err := s.send(left, patient)
		s.sent += n
		if err != nil || n < len(left) {
			return false, err
		}
	}
}

// send sends p, and only a part of it if it would have to wait and may not.
func (s *sealer) send(p []byte, patient bool) (int, error) {
	if s.raw == nil {
		if !patient {
			return 0, nil
		}
		return s.Conn.Write(p)
	}
	s.left, s.patient, s.errno = p, patient, 0
	err := s.raw.Write(s.step)
	if s.errno != 0 {
		err = s.errno
	}
	return len(p) - len(s.left), err
}

// sendSome is called by the runtime's poller with the socket, as
// outbox.writeSome is.
func (s *sealer) sendSome(fd uintptr) bool {
	for len(s.left) > 0 {
		n, err := unix.Write(int(fd), s.left)
		switch err {
		case nil:
			s.left = s.left[n:]
			s.progress.Store(time.Now().UnixNano())
		case unix.EINTR:
		case unix.EAGAIN:
			return !s.patient
		default:
			s.errno, _ = err.(syscall.Errno)
			return true
		}
	}
	return true
}

// take encrypts some of p and says how much. Short pieces gather until they
// fill a record, or finish is called.
func (s *sealer) take(p []byte) (int, error) {
	if s.filled == 0 && len(p) >= recordBytes {
		n := min(len(p)-len(p)%recordBytes, sealBytes)
		return s.secure.Write(p[:n])
	}
	n := copy(s.plain[s.filled:], p)
	s.filled += n
	if s.filled < recordBytes {
		return n, nil
	}
	return n, s.finish()
}

// finish encrypts what take has gathered.
func (s *sealer) finish() error {
	if s.filled == 0 {
		return nil
	}
	_, err := s.secure.Write(s.plain[:s.filled])
	s.filled = 0
	return err
}

// full says whether it is time to send.
func (s *sealer) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.buf)-s.sent >= sealBytes
}
