package agent

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"
)

// names answers the questions of this process for names of hosts: farName is
// here, or nobody knows it. Nobody knows any other.
type names struct{ lost atomic.Bool }

var resolver names

// Before any test runs: what dials reads it.
func init() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go resolver.serve(theirs)
		return ours, nil
	}}
}

// serve answers over a connection as over TCP: RFC 1035, section 4.2.2.
func (n *names) serve(conn net.Conn) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		text := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, text); err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(text) != nil || len(m.Questions) != 1 {
			return
		}
		q := m.Questions[0]
		m.Response, m.Additionals = true, nil
		switch {
		case n.lost.Load() || q.Name.String() != farName+".":
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
				Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			}}
		}
		answer, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
