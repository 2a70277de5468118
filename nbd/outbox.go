package nbd

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxAhead is how many bytes of replies may wait to be sent before workers that
// would add many wait too.
const maxAhead = 512 << 10

// An outbox sends the batches of one connection, and counts the bytes of
// requests and replies that the connection holds.
//
// Whoever hands in a batch when nobody is sending becomes the sender, and
// sends until the queue is empty: all queued batches go out with one writev.
// A worker that is the sender waits for a slow client. The reader never does:
// when the socket is full it leaves the sending to the outbox's own goroutine
// and goes on reading. What bounds the memory is the charge: the reader stops
// when the limit is reached, until replies have left.
type outbox struct {
	conn  net.Conn
	raw   syscall.RawConn // nil if conn is no socket; then there is no writev
	seal  *sealer         // below conn, if it is encrypted
	limit int64           // bytes

	// budget bounds all connections together; nil does not. Of the charge,
	// drawn has been taken from it. done is closed when the connection is torn
	// down.
	budget *budget
	done   <-chan struct{}

	mu      sync.Mutex
	changed sync.Cond // charge or ahead has shrunk, sending has ended, pressed or dead is set
	queue   []*batch
	sending bool // somebody owns the fields of the sender
	charge  int64
	drawn   int64
	ahead   int64 // bytes of replies that were handed in and not sent
	pressed bool  // the reader needs workers: none waits for ahead to shrink
	dead    bool  // the connection takes no more replies

	// Of the sender.
	out      []*batch
	vec      []unix.Iovec // what is left of out; len 0 when all is sent
	left     []unix.Iovec
	patient  bool // wait when the socket is full
	writeErr error
	step     func(fd uintptr) bool // writeSome, bound once

	// Unix times in nanoseconds.
	progress  atomic.Int64 // when the client last took something
	receiving atomic.Int64 // since when a payload is being received; 0: none is

	handed  chan struct{} // hands the sending over to the outbox's goroutine
	started bool          // that goroutine; of the reader
	ended   chan struct{} // that goroutine is gone
}

func (o *outbox) init(conn net.Conn, limit int64) {
	o.conn, o.limit = conn, limit
	o.changed.L = &o.mu
	o.step = o.writeSome
	o.handed = make(chan struct{}, 1)
	o.ended = make(chan struct{})
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			o.raw = raw
		}
	}
}

// acquire takes n bytes of the limit, and waits for them; a request larger
// than the limit waits until it is alone. It is false if the connection is
// dead. Only the reader calls it, with no reply of its own held back.
func (o *outbox) acquire(n int64) bool {
	o.mu.Lock()
	for o.charge > 0 && o.charge+n > o.limit && !o.dead {
		o.changed.Wait()
	}
	o.charge += n
	dead := o.dead
	o.mu.Unlock()
	return o.draw() && !dead
}

// draw takes from the budget what the charge needs, and waits for it. It is
// false if the connection was torn down meanwhile. Only the reader calls it.
func (o *outbox) draw() bool {
	if o.budget == nil {
		return true
	}
	o.mu.Lock()
	need := o.charge - freeCharge - o.drawn
	o.mu.Unlock()
	if need <= 0 {
		return true
	}
	if !o.budget.take(need, o.done) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drawn += need
	o.repay() // replies may have left meanwhile
	return true
}

// repay gives back what the charge needs no more. The caller holds mu.
func (o *outbox) repay() {
	if back := o.drawn - max(o.charge-freeCharge, 0); back > 0 {
		o.drawn -= back
		o.budget.give(back)
	}
}

// stalled says whether replies wait and the client has taken nothing for a
// while, or a payload that has room here has not come in three times as long.
func (o *outbox) stalled(while time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if since := o.receiving.Load(); since != 0 && time.Since(time.Unix(0, since)) > 3*while {
		return true
	}
	return o.sending && time.Since(time.Unix(0, o.progress.Load())) > while
}

// release gives back what acquire took for a request that has no reply.
func (o *outbox) release(n int64) {
	o.mu.Lock()
	o.charge -= n
	o.repay()
	o.changed.Broadcast()
	o.mu.Unlock()
}

// sendAcquired takes the reader's batch whose charge was acquired, and does not
// wait for the client.
func (o *outbox) sendAcquired(b *batch) {
	if o.push(b, 0) {
		o.send(false)
	}
}

// sendInline takes the reader's batch, charges it, and waits for nothing but
// the limit.
func (o *outbox) sendInline(b *batch) {
	if o.push(b, b.charge) {
		o.send(false)
	}
	o.mu.Lock()
	for o.charge > o.limit && !o.dead {
		o.changed.Wait()
	}
	o.mu.Unlock()
	o.draw() // a connection that was torn down is noticed by the next read
}

// sendPatient takes a worker's batch whose charge was acquired. It may wait for
// the client.
func (o *outbox) sendPatient(b *batch) {
	if o.push(b, 0) {
		o.send(true)
	}
}

// pace returns when the client is not far behind with taking replies. A worker
// that is to read much calls it first: what is read long before it can be sent
// has left the processor's cache by then.
func (o *outbox) pace() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.ahead > maxAhead && !o.pressed && !o.dead {
		o.changed.Wait()
	}
}

// press says whether the reader waits for a worker: then nobody waits in pace,
// or the reader would wait for the client.
func (o *outbox) press(on bool) {
	o.mu.Lock()
	o.pressed = on
	o.changed.Broadcast()
	o.mu.Unlock()
}

// push queues b and says whether the caller is the sender now.
func (o *outbox) push(b *batch, charge int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.charge += charge
	o.ahead += int64(b.bytes)
	if last := len(o.queue) - 1; last >= 0 && o.queue[last].absorb(b) {
		b.free()
	} else {
		o.queue = append(o.queue, b)
	}
	if o.sending {
		return false
	}
	o.sending = true
	o.progress.Store(time.Now().UnixNano())
	return true
}

// send sends until the queue is empty, or hands over when it may not wait.
func (o *outbox) send(patient bool) {
	for o.next() {
		if !o.write(patient) {
			o.handOver()
			return
		}
	}
}

// next drops what was sent and takes the whole queue. It is false, and the
// caller no longer the sender, if the queue is empty.
func (o *outbox) next() bool {
	var charge, sent int64
	for i, b := range o.out {
		charge += b.charge
		sent += int64(b.bytes)
		b.free()
		o.out[i] = nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.charge -= charge
	o.repay()
	o.ahead -= sent
	o.dead = o.dead || o.writeErr != nil
	o.out, o.queue = o.queue, o.out[:0]
	o.changed.Broadcast()
	if len(o.out) == 0 {
		o.sending = false
		return false
	}
	o.vec = o.vec[:0]
	if !o.dead {
		for _, b := range o.out {
			for i := range b.segs {
				data := b.segs[i].data
				v := unix.Iovec{Base: unsafe.SliceData(data)}
				v.SetLen(len(data))
				o.vec = append(o.vec, v)
			}
		}
	}
	o.left = o.vec
	return true
}

// write sends what is left. It is false if it would have to wait and may not.
// An error is kept in writeErr: the connection is closed and the rest dropped.
func (o *outbox) write(patient bool) bool {
	done := true
	switch {
	case o.seal != nil:
		done = o.writeSealed(patient)
	case len(o.left) == 0:
	case o.raw == nil:
		if !patient {
			return false
		}
		o.writePlain()
	default:
		o.patient = patient
		if err := o.raw.Write(o.step); err != nil && o.writeErr == nil {
			o.writeErr = err
		}
	}
	if o.writeErr != nil {
		o.left = nil
		o.conn.Close() // wakes the reader; the error is already known
		done = true
	}
	clear(o.vec[:len(o.vec)-len(o.left)]) // hold no buffer that is back in its pool
	return done && len(o.left) == 0
}

// writeSome is called by the runtime's poller with the socket, again and again
// while it returns false, each time when the socket takes more.
func (o *outbox) writeSome(fd uintptr) bool {
	for len(o.left) > 0 {
		count := min(len(o.left), 1024) // UIO_MAXIOV, writev(2)
		n, _, errno := syscall.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.left[0])), uintptr(count))
		switch errno {
		case 0:
			o.advance(int(n))
			if len(o.left) > 0 { // nobody asks when all is sent
				o.progress.Store(time.Now().UnixNano())
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return !o.patient
		default:
			o.writeErr = errno
			return true
		}
	}
	return true
}

// advance steps over n bytes that were sent.
func (o *outbox) advance(n int) {
	for n > 0 {
		v := &o.left[0]
		if size := int(v.Len); n >= size {
			n -= size
			o.left = o.left[1:]
			continue
		}
		v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
		v.SetLen(int(v.Len) - n)
		return
	}
}

// writePlain sends over a connection that has no descriptor.
func (o *outbox) writePlain() {
	for _, v := range o.left {
		if _, err := o.conn.Write(unsafe.Slice(v.Base, v.Len)); err != nil {
			o.writeErr = err
			return
		}
		o.progress.Store(time.Now().UnixNano())
	}
	o.left = nil
}

// writeSealed encrypts and sends by turns. It is false if it would have to wait
// and may not; then records may be held though nothing is left.
func (o *outbox) writeSealed(patient bool) bool {
	for {
		done, err := o.seal.pass(patient)
		if err != nil {
			o.writeErr = err
		}
		if !done || len(o.left) == 0 {
			return done
		}
		o.seal.hold()
		if o.writeErr = o.encrypt(); o.writeErr != nil {
			return false
		}
	}
}

// encrypt gives the sealer as much of what is left as is sent at once.
func (o *outbox) encrypt() error {
	for len(o.left) > 0 && !o.seal.full() {
		v := &o.left[0]
		n, err := o.seal.take(unsafe.Slice(v.Base, v.Len))
		if err != nil {
			return err
		}
		o.advance(n)
	}
	return o.seal.finish()
}

// secure goes over to an encrypted connection, before anything is sent. Only
// the reader calls it.
func (o *outbox) secure(s *sealer) {
	o.conn, o.seal = s.secure, s
	s.progress = &o.progress
}

// handOver makes the outbox's goroutine the sender. Only the reader, which
// may not wait, comes here.
func (o *outbox) handOver() {
	if !o.started {
		o.started = true
		go func() {
			defer close(o.ended)
			for range o.handed {
				o.write(true)
				o.send(true)
			}
		}()
	}
	o.handed <- struct{}{} // never blocks: there is one sender
}

// drain waits until everything handed in is sent, or the connection is dead.
func (o *outbox) drain() {
	o.mu.Lock()
	for o.sending {
		o.changed.Wait()
	}
	o.mu.Unlock()
}

// close ends the outbox's goroutine. Nothing is handed in any more.
func (o *outbox) close() {
	o.drain()
	close(o.handed)
	if o.started {
		<-o.ended
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.charge = 0 // of requests that were torn down
	o.repay()
}

// lost is why replies could not be sent, or nil. It may be asked after close.
func (o *outbox) lost() error {
	if errors.Is(o.writeErr, net.ErrClosed) {
		return nil
	}
	return o.writeErr
}
