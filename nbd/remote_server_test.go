package nbd_test

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"varve/nbd"
)

// silentServer negotiates like an old server, and then leaves the rest to the
// test.
func silentServer(t *testing.T) (path string, conns <-chan net.Conn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.SetDeadline(time.Now().Add(patience))
		if err := plainHandshake(conn, 1<<20); err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	return path, accepted
}

// plainHandshake refuses every option and then takes EXPORT_NAME, with 124
// bytes of padding.
func plainHandshake(conn net.Conn, size uint64) error {
	conn.Write(wire(uint64(wireServerMagic), uint64(wireOptionMagic), uint16(1)))
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		return err
	}
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(conn, head); err != nil {
			return err
		}
		option := be32(head[8:])
		if _, err := io.CopyN(io.Discard, conn, int64(be32(head[12:]))); err != nil {
			return err
		}
		if option == optExportName {
			_, err := conn.Write(append(wire(size, uint16(1|1<<2)), make([]byte, 124)...))
			return err
		}
		conn.Write(wire(uint64(wireReplyMagic), option, uint32(errUnsup), uint32(0)))
	}
}

// against connects the client to a server that negotiates structured replies
// and base:allocation for an export of 1 MiB, and then does what serve says,
// until the client leaves.
func against(t testing.TB, serve func(net.Conn)) *nbd.Client {
	t.Helper()
	return againstForm(t, false, serve)
}

// againstForm is against, with extended headers or without.
func againstForm(t testing.TB, extended bool, serve func(net.Conn)) *nbd.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		answer := func(option, kind uint32, data ...any) {
			p := wire(data...)
			conn.Write(wire(uint64(wireReplyMagic), option, kind, uint32(len(p)), p))
		}
		conn.Write(wire(uint64(wireServerMagic), uint64(wireOptionMagic), uint16(3)))
		io.ReadFull(conn, make([]byte, 4))
		for option := uint32(0); option != optGo; {
			head := make([]byte, 16)
			if _, err := io.ReadFull(conn, head); err != nil {
				return
			}
			io.CopyN(io.Discard, conn, int64(be32(head[12:])))
			switch option = be32(head[8:]); option {
			case optExtended:
				if !extended {
					answer(option, errUnsup)
					continue
				}
			case optSetMeta:
				answer(option, repMeta, uint32(1), "base:allocation")
			case optGo:
				answer(option, repInfo, uint16(0), uint64(1<<20), uint16(1|1<<2|1<<6))
			}
			answer(option, repAck)
		}
		serve(conn)
		io.Copy(io.Discard, conn)
	}()
	return connect(t, unixURI(path, ""))
}
