package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The generic netlink family of the driver: Linux,
// include/uapi/linux/nbd-netlink.h.
const (
	familyName = "nbd"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex       = 1 // u32
	attrSize        = 2 // u64, bytes
	attrBlockSize   = 3 // u64, bytes
	attrTimeout     = 4 // u64, seconds
	attrServerFlags = 5 // u64, transmission flags
	attrSockets     = 7 // nested: attrSocket…
	attrDeadTimeout = 8 // u64, seconds
	attrBackend     = 10

	attrSocket   = 1 // nested: attrSocketFD
	attrSocketFD = 1 // u32
)

// ErrNoDriver says that this kernel has no NBD driver, or not loaded.
var ErrNoDriver = errors.New("this kernel's NBD driver is not loaded: load it with \"modprobe nbd\", and put the word nbd into " +
	"/etc/modules-load.d/nbd.conf so that it is there after the next boot. A kernel that has no such driver can show a volume " +
	"as a file: nbdfuse DIR --uri URI")

// A command is one message to the driver.
type command struct {
	number  uint8
	index   int // of the device; below 0: any
	backend string
	size    int64 // 0: unchanged
	block   int64 // 0: unchanged
	flags   uint64
	times   *times
	sockets []*os.File
}

// times are the driver's limits, in seconds.
type times struct{ request, dead uint64 }

// encode returns the attributes of the command.
func (c command) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if c.index >= 0 {
		e.Uint32(attrIndex, uint32(c.index))
	}
	for _, a := range []struct {
		kind  uint16
		value uint64
	}{{attrSize, uint64(c.size)}, {attrBlockSize, uint64(c.block)}, {attrServerFlags, c.flags}} {
		if a.value != 0 {
			e.Uint64(a.kind, a.value)
		}
	}
	if c.times != nil {
		e.Uint64(attrTimeout, c.times.request)
		e.Uint64(attrDeadTimeout, c.times.dead)
	}
	if c.backend != "" {
		e.String(attrBackend, c.backend)
	}
	if len(c.sockets) > 0 {
		e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
			for _, socket := range c.sockets {
				list.Nested(attrSocket, func(item *netlink.AttributeEncoder) error {
					item.Uint32(attrSocketFD, uint32(socket.Fd()))
					return nil
				})
			}
			return nil
		})
	}
	return e.Encode()
}

// send carries out a command and returns the device's index, which after
// CONNECT is the driver's choice.
func (c command) send() (int, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	defer conn.Close()
	family, err := conn.GetFamily(familyName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, ErrNoDriver
	case err != nil:
		return 0, fmt.Errorf("netlink: look for the family %s: %w", familyName, err)
	}
	data, err := c.encode()
	if err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	flags := netlink.Request
	if c.number != cmdConnect { // which answers without being asked to
		flags |= netlink.Acknowledge
	}
	message := genetlink.Message{Header: genetlink.Header{Command: c.number, Version: family.Version}, Data: data}
	answers, err := conn.Execute(message, family.ID, flags)
	if err != nil {
		return 0, commandError(err)
	}
	if c.number != cmdConnect {
		return c.index, nil
	}
	return indexOf(answers)
}

// commandError says what can be done about an error of the driver.
func commandError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: only root can attach devices", fs.ErrPermission)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("the device is taken by another program: %w", unix.EBUSY)
	}
	return err
}

// indexOf finds the device's index in the answer to CONNECT.
func indexOf(answers []genetlink.Message) (int, error) {
	for _, answer := range answers {
		d, err := netlink.NewAttributeDecoder(answer.Data)
		if err != nil {
			return 0, fmt.Errorf("netlink: answer of the driver: %w", err)
		}
		for d.Next() {
			if d.Type() == attrIndex {
				return int(d.Uint32()), nil
			}
		}
		if err := d.Err(); err != nil {
			return 0, fmt.Errorf("netlink: answer of the driver: %w", err)
		}
	}
	return 0, errors.New("netlink: the driver did not say which device it made")
}
