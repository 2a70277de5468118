package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DeadTimeout is how long requests wait for somebody to serve a device
	// before they fail.
	DeadTimeout = 10 * time.Minute

	// requestTimeout is how long one request may take before the driver gives
	// up on its connection, where there is only one; see the package comment.
	requestTimeout = 10 * time.Second

	// sharedRequestTimeout is requestTimeout where there are several.
	sharedRequestTimeout = 2 * time.Minute

	// MaxConnections bounds the sockets of a device. Each has 128 requests in
	// flight.
	MaxConnections = 16

	offerPause    = 5 * time.Millisecond // after a socket that was not taken, doubled each time
	offerPauseMax = time.Second
)

// An InUseError says why a device cannot be detached. It is syscall.EBUSY.
type InUseError struct {
	Device string
	By     []string // a phrase each
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is in use: %s. Unmount and close it first", e.Device, strings.Join(e.By, "; "))
}

// Is makes the error a syscall.EBUSY.
func (e *InUseError) Is(target error) bool { return target == unix.EBUSY }

// Options say what to attach.
type Options struct {
	Identity    string // what the device shows; unique on this machine
	Link        string // a name for it in LinkFolder; empty: none
	TakeOver    bool   // make no new device: without one of this identity it is fs.ErrNotExist
	Size        int64  // bytes
	BlockSize   int64  // what the size is a multiple of, 512 to 4096 bytes
	Flags       uint64 // transmission flags, as the protocol has them
	Connections int    // 1 to MaxConnections
	Index       int    // the device that is wanted; below 0: any that is free

	// IndexIsAWish makes Index one: another device will do if it is taken.
	IndexIsAWish bool

	// Serve answers the requests that come over one connection, without a
	// handshake, until it ends, and closes it. It returns when none of them is
	// at work any more.
	Serve func(context.Context, net.Conn) error

	Log *slog.Logger // nil is slog.Default()
}

// A Device is a block device that this process serves.
type Device struct {
	o     Options
	index int
	taken bool // it was there before

	stop    context.CancelFunc
	serving sync.WaitGroup
	gone    chan struct{}
	ended   sync.Once  // closes gone
	linking sync.Mutex // guards o.Link once the device is there; innermost

	mu       sync.Mutex
	released bool // no new sockets are offered
	conns    map[*net.UnixConn]struct{}
}

// Attach shows what o.Serve serves as a block device. A connected device with
// this identity is taken over: its waiting requests go on. Otherwise a new one
// is made. ctx bounds the call only.
func Attach(ctx context.Context, o Options) (*Device, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Connections < 1 || o.Connections > MaxConnections {
		return nil, fmt.Errorf("%d connections: there can be 1 to %d: %w", o.Connections, MaxConnections, fs.ErrInvalid)
	}
	if err := flushesIO(); err != nil {
		o.Log.Warn("the kernel does not learn that this process serves a device; under want of memory both may wait for each other", "error", err)
	}
	d := &Device{o: o, gone: make(chan struct{}), conns: map[*net.UnixConn]struct{}{}}
	if index, found := find(o.Identity); found {
		d.index, d.taken = index, true
		if err := d.Resize(o.Size); err != nil {
			return nil, err
		}
	} else if o.TakeOver {
		return nil, fmt.Errorf("no device has the identity %q: %w", o.Identity, fs.ErrNotExist)
	}
	lasting, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	if d.taken {
		for range o.Connections {
			d.serving.Go(func() { d.keep(lasting, nil) })
		}
	} else if err := d.connect(lasting); err != nil {
		stop()
		return nil, err
	}
	if err := d.link(); err != nil {
		o.Log.Warn("a device has no link", "device", d.Path(), "error", err)
	}
	return d, nil
}

// connect makes a new device.
func (d *Device) connect(lasting context.Context) error {
	ours, theirs, err := socketPairs(d.o.Connections)
	if err != nil {
		return err
	}
	for _, conn := range ours {
		d.serving.Go(func() { d.keep(lasting, conn) })
	}
	c := command{
		number: cmdConnect, index: d.o.Index, backend: d.o.Identity, size: d.o.Size, block: d.o.BlockSize,
		flags: d.o.Flags, times: d.times(), sockets: theirs,
	}
	d.index, err = c.send()
	if errors.Is(err, unix.EBUSY) && d.o.IndexIsAWish && d.o.Index >= 0 {
		c.index = -1
		d.index, err = c.send()
	}
	closeAll(theirs) // the kernel has its own references, or none
	if err == nil {
		if err = checkNode(d.index); err != nil {
			disconnect(d.index)
		}
	}
	if err != nil {
		d.release(false)
		d.serving.Wait()
		return fmt.Errorf("attach a device: %w", err)
	}
	return nil
}

func (d *Device) times() *times {
	request := requestTimeout
	if d.o.Connections > 1 {
		request = sharedRequestTimeout
	}
	return &times{request: uint64(request / time.Second), dead: uint64(DeadTimeout / time.Second)}
}

// Index is N of /dev/nbdN.
func (d *Device) Index() int { return d.index }

// Path is the device's file.
func (d *Device) Path() string { return path(d.index) }

// Gone is closed when the device is nobody's any more: after Detach, or when
// somebody else disconnected it.
func (d *Device) Gone() <-chan struct{} { return d.gone }

// keep serves one of the device's connections: first conn, if it is not nil,
// then one socket after the other that is offered in its place.
func (d *Device) keep(ctx context.Context, conn *net.UnixConn) {
	pause := offerPause
	for {
		if conn == nil {
			var err error
			if conn, err = d.offer(); err != nil {
				if d.hasEnded() {
					return
				}
				d.o.Log.Error("no new connection for a device; it is tried again", "device", d.Path(), "error", err)
			}
		}
		began := time.Now()
		if conn != nil {
			d.serve(ctx, conn)
			conn = nil
		}
		if d.hasEnded() {
			return
		}
		if time.Since(began) > offerPauseMax {
			pause = offerPause
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, offerPauseMax)
		case <-ctx.Done():
			return
		}
	}
}

// serve runs Options.Serve on a connection that Release can reach.
func (d *Device) serve(ctx context.Context, conn *net.UnixConn) {
	d.mu.Lock()
	released := d.released
	if !released {
		d.conns[conn] = struct{}{}
	}
	d.mu.Unlock()
	if released {
		conn.Close() // nothing was served yet
		return
	}
	err := d.o.Serve(ctx, conn)
	d.mu.Lock()
	delete(d.conns, conn)
	d.mu.Unlock()
	if err != nil {
		d.o.Log.Debug("a device's connection ended", "device", d.o.Identity, "reason", err)
	}
}

// hasEnded says whether no new connection is wanted: the device was released,
// or disconnected, which is told to Gone.
func (d *Device) hasEnded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.released {
		return true
	}
	if connected(d.index, d.o.Identity) {
		return false
	}
	d.released = true
	d.end()
	return true
}

// end tells Gone that the device is nobody's any more.
func (d *Device) end() {
	d.ended.Do(func() {
		d.linking.Lock()
		defer d.linking.Unlock()
		d.unlink()
		close(d.gone)
	})
}

// offer makes a socket and gives its other end to the kernel.
func (d *Device) offer() (*net.UnixConn, error) {
	ours, theirs, err := socketPairs(1)
	if err != nil {
		return nil, err
	}
	defer closeAll(theirs)
	_, err = command{number: cmdReconfigure, index: d.index, backend: d.o.Identity, times: d.times(), sockets: theirs}.send()
	if err != nil {
		ours[0].Close() // nobody has the other end
		return nil, err
	}
	return ours[0], nil
}

// Resize makes the kernel show size bytes.
func (d *Device) Resize(size int64) error {
	_, err := command{number: cmdReconfigure, index: d.index, backend: d.o.Identity, size: size, block: d.o.BlockSize}.send()
	if err != nil {
		return fmt.Errorf("size of %s: %w", d.Path(), err)
	}
	shown, err := sizeOf(d.index)
	if err != nil {
		return err
	}
	if shown != size {
		return fmt.Errorf("%s still has %d bytes, not %d: this kernel cannot grow it while it is attached; detach it and attach it again",
			d.Path(), shown, size)
	}
	return nil
}

// Detach writes back what is dirty and takes the device away. While somebody
// uses it, it is an *InUseError and nothing changes, unless force is set: then
// whoever uses it gets I/O errors from now on.
func (d *Device) Detach(ctx context.Context, force bool) error {
	if !force {
		held, err := d.claim()
		if err != nil {
			return err
		}
		defer held.Close() // nothing is dirty
	}
	d.mu.Lock()
	d.released = true
	d.mu.Unlock()
	if err := disconnect(d.index); err != nil && connected(d.index, d.o.Identity) {
		return fmt.Errorf("detach %s: %w", d.Path(), err)
	}
	d.end()
	return d.wait(ctx)
}

// claim opens the device for this process alone, so that nobody can mount it
// any more, and writes back what is dirty.
func (d *Device) claim() (*os.File, error) {
	if who := users(d.index); len(who) > 0 {
		return nil, &InUseError{d.Path(), who}
	}
	f, err := os.OpenFile(d.Path(), os.O_RDWR|os.O_EXCL, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EACCES) {
		f, err = os.OpenFile(d.Path(), os.O_RDONLY|os.O_EXCL, 0)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, &InUseError{d.Path(), []string{"something that cannot be seen from here has it, a mount in a container for example"}}
	case err != nil:
		return nil, fmt.Errorf("detach: %w", err)
	}
	if err := f.Sync(); err != nil {
		f.Close() // the first error is the one that counts
		return nil, fmt.Errorf("write back what is dirty in %s: %w", d.Path(), err)
	}
	return f, nil
}

func disconnect(index int) error {
	_, err := command{number: cmdDisconnect, index: index}.send()
	return err
}

// Release ends the serving and leaves the device to whoever attaches it next.
// What the kernel has sent is answered; what it sends from then on waits. When
// ctx ends first, the connections are cut.
func (d *Device) Release(ctx context.Context) error {
	d.release(true)
	return d.wait(ctx)
}

// release ends all connections, politely: what was sent is answered.
func (d *Device) release(politely bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.released = true
	for conn := range d.conns {
		if politely {
			conn.CloseRead() // fails if it has ended already
		} else {
			conn.Close()
		}
	}
}

// wait returns when nothing is served any more.
func (d *Device) wait(ctx context.Context) error {
	idle := make(chan struct{})
	go func() {
		d.serving.Wait()
		close(idle)
	}()
	defer d.stop()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("requests of %s are still at work: %w", d.Path(), context.Cause(ctx))
	}
}
