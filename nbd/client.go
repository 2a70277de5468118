package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"varve/layers"
)

// ClientOptions are what Dial may be told. The zero value is good.
type ClientOptions struct {
	Timeout  time.Duration // for connecting and the handshake; 0: 30 seconds
	InFlight int           // requests that wait for their reply at once; 0: 64
	Contexts []string      // metadata contexts to ask for beside base:allocation
}

const (
	clientTimeout  = 30 * time.Second
	clientInFlight = 64
	goodbyeWithin  = time.Second // for the DISC of Close to leave
)

// A Client is one connection to an export of some server, as a Device. Many
// goroutines may use it at once; their requests share the connection, and
// replies are matched by their cookies.
//
//	method ──slot──► pending[cookie] ──out──► writer ──► server
//	   ▲                   │                               │
//	   └───────done────────┴──────────── reader ◄──────────┘
//
// The connection ends with Close, with the context that was given to Dial,
// when the server closes it or breaks the protocol. Every call that waits then
// and every later one returns the same error, which says why. A refusal of a
// single request leaves the rest alone; errors.Is finds in it the
// syscall.Errno that the server sent.
//
// The server is not trusted: nothing that it sends makes the client take more
// memory than the caller's buffers and a few hundred KiB, and no length is
// used that was not asked for.
type Client struct {
	uri        string
	size       int64 // bytes
	flags      uint16
	structured bool
	extended   bool              // extended headers; structured is true then
	contexts   map[string]uint32 // numbers of the metadata contexts that were agreed on
	least      int64             // smallest block, and what requests are aligned to
	most       int64             // largest payload, a multiple of least

	conn  net.Conn
	in    *bufio.Reader
	cork  *corked       // below conn, if it is encrypted
	slots chan struct{} // one for each request in flight
	out   chan *clientCall
	dead  chan struct{} // closed once err is set
	wrote chan struct{} // closed when the writer has ended
	ended chan struct{} // closed when all waiters have been told
	stop  func() bool   // takes the context's hand off

	// partial is held for writing while a block is read, changed and written,
	// and for reading by other writes. Only used if least is above 1.
	partial sync.RWMutex

	mu      sync.Mutex
	err     error // why the connection ended
	cookie  uint64
	pending map[uint64]*clientCall
}

var _ Device = (*Client)(nil)

// Dial connects to an export; ParseURI says what an address looks like. An
// export that does not exist is fs.ErrNotExist. ctx bounds the life of the
// client, not only the dialing.
func Dial(ctx context.Context, uri string, o ClientOptions) (*Client, error) {
	address, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = clientTimeout
	}
	if o.InFlight <= 0 {
		o.InFlight = clientInFlight
	}
	dialer := net.Dialer{Timeout: o.Timeout}
	conn, err := dialer.DialContext(ctx, address.Network, address.Host)
	if err != nil {
		return nil, fmt.Errorf("NBD server of %s: %w", uri, err)
	}
	c := &Client{
		uri: uri, conn: conn, in: bufio.NewReaderSize(conn, 64<<10),
		slots: make(chan struct{}, o.InFlight), out: make(chan *clientCall, o.InFlight),
		dead: make(chan struct{}), wrote: make(chan struct{}), ended: make(chan struct{}),
		pending: map[uint64]*clientCall{}, contexts: map[string]uint32{},
	}
	conn.SetDeadline(time.Now().Add(o.Timeout)) // a socket takes any deadline
	interrupt := context.AfterFunc(ctx, func() { conn.Close() })
	err = c.shake(ctx, address, o.Contexts)
	if !interrupt() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("handshake with %s: %w", uri, err)
	}
	conn.SetDeadline(time.Time{})
	go c.send()
	go c.receive()
	c.stop = context.AfterFunc(ctx, func() { c.fail(ctx.Err()) })
	return c, nil
}

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly reports whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// Sparse reports whether the server tells data from zeros. If not, all of the
// export counts as data.
func (c *Client) Sparse() bool { return c.Tells(allocation) }

// Tells reports whether the server has agreed to a metadata context: only
// base:allocation and those of ClientOptions.Contexts are asked for.
func (c *Client) Tells(context string) bool {
	_, agreed := c.contexts[context]
	return agreed
}

// Extended reports whether extended headers were agreed on, so that one request
// can be about more than 4 GiB.
func (c *Client) Extended() bool { return c.extended }

// Close takes leave of the server and ends the connection. What still waits
// for a reply fails with layers.ErrClosed, and so does all that comes later. It
// does not flush.
func (c *Client) Close() error {
	c.stop()
	c.conn.SetWriteDeadline(time.Now().Add(goodbyeWithin))
	bye := &clientCall{cmd: cmdDisc, sent: make(chan struct{})}
	select {
	case c.out <- bye:
		select {
		case <-bye.sent:
		case <-c.wrote:
		}
	case <-c.dead:
	case <-time.After(goodbyeWithin):
	}
	c.fail(layers.ErrClosed)
	<-c.ended
	return nil
}

// fail ends the connection with a reason; only the first counts.
func (c *Client) fail(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("connection to %s: %w", c.uri, why)
	close(c.dead)
	c.conn.Close() // its error would be about bytes nobody waits for
}

// reason is why the connection ended.
func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// do sends a request and waits for its reply. When it returns, neither
// goroutine touches the call's buffers any more.
func (c *Client) do(call *clientCall) error {
	call.done = make(chan struct{})
	call.sent = make(chan struct{})
	select {
	case c.slots <- struct{}{}:
	case <-c.dead:
		return c.reason()
	}
	defer func() { <-c.slots }()
	if err := c.enter(call); err != nil {
		return err
	}
	select {
	case c.out <- call:
	case <-c.dead:
	}
	<-call.done
	select { // A server may answer before it has read the payload.
	case <-call.sent:
	case <-c.wrote:
	}
	return call.err
}

// enter gives a call its cookie, by which the reader finds it.
func (c *Client) enter(call *clientCall) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.cookie++
	call.cookie = c.cookie
	c.pending[call.cookie] = call
	return nil
}

// find returns the call that a reply is for.
func (c *Client) find(cookie uint64) (*clientCall, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.pending[cookie]
	if call == nil {
		return nil, fmt.Errorf("%w: a reply with cookie %d, which no request has", errBreach, cookie)
	}
	return call, nil
}

// leave ends a call that has its reply.
func (c *Client) leave(call *clientCall, err error) {
	c.mu.Lock()
	delete(c.pending, call.cookie)
	c.mu.Unlock()
	call.err = err
	close(call.done)
}

// errBreach is what a server does that the protocol forbids.
var errBreach = errors.New("the server breaks the NBD protocol")
