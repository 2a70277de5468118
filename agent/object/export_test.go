package object

import "net"

// StallConn gives tests the connection that NewTransport dials.
func StallConn(c net.Conn) net.Conn { return &stallConn{Conn: c} }
