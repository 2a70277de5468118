package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// gateway stands for the S3 server of e2e/tools in the lists of programs that
// peers need.
const gateway = "versitygw"

// slowS3Delay is how much later each byte arrives, in each direction.
const slowS3Delay = 10 * time.Millisecond

const slowS3About = "versitygw, 20 ms away"

func (o *options) gateway() string { return filepath.Join(o.tools, gateway) }

// A slowS3 is versitygw over the folder of the repositories, each of which is a
// bucket, behind a proxy that lets everything arrive later.
type slowS3 struct {
	url    string // of the proxy
	server *server
	proxy  net.Listener
	behind string // address of the server

	mu    sync.Mutex
	conns map[net.Conn]bool // nil after close
}

func startSlowS3(ctx context.Context, b *bench, repos string) (*slowS3, error) {
	s := &slowS3{conns: make(map[net.Conn]bool)}
	var err error
	if s.server, s.behind, err = startGateway(ctx, b, filepath.Join(b.disk, "s3"), repos); err != nil {
		return nil, err
	}
	if s.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, s.server.stop())
	}
	s.url = "http://" + s.proxy.Addr().String()
	go s.serve()
	return s, nil
}

// startGateway starts versitygw, which keeps what it has to remember in home,
// over a folder whose folders are buckets.
func startGateway(ctx context.Context, b *bench, home, buckets string) (s *server, address string, err error) {
	if address, err = freeAddress(); err != nil {
		return nil, "", err
	}
	for _, dir := range []string{"iam", "meta"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o700); err != nil {
			return nil, "", err
		}
	}
	program, err := filepath.Abs(b.gateway())
	if err != nil {
		return nil, "", err
	}
	s, err = launch([]string{"ROOT_ACCESS_KEY=bench", "ROOT_SECRET_KEY=benchbench"}, program,
		"--quiet", "--keep-alive", "--port", address, "--iam-dir", filepath.Join(home, "iam"), "posix", "--sidecar", filepath.Join(home, "meta"), buckets)
	if err != nil {
		return nil, "", err
	}
	if err := s.await(ctx, "tcp", address); err != nil {
		return nil, "", errors.Join(err, s.stop())
	}
	return s, address, nil
}

// gatewayEnv is what a client logs in with.
var gatewayEnv = []string{"AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=benchbench", "AWS_REGION=us-east-1"}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *slowS3) close() error {
	err := s.proxy.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close() // nobody waits for what it carries
	}
	s.conns = nil
	s.mu.Unlock()
	return errors.Join(err, s.server.stop())
}

// serve carries each connection to the server.
func (s *slowS3) serve() {
	for {
		client, err := s.proxy.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			time.Sleep(2 * slowS3Delay) // of the handshake
			server, err := net.Dial("tcp", s.behind)
			if err != nil {
				client.Close() // the client sees that the server is away
				return
			}
			if !s.keep(client) || !s.keep(server) {
				client.Close()
				server.Close()
				return
			}
			go s.carry(server, client)
			s.carry(client, server)
		}()
	}
}

func (s *slowS3) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = true
	return true
}

// A parcel is what one receive brought, and when it may be delivered.
type parcel struct {
	bytes []byte
	due   time.Time
}

// carry copies from one connection to the other, each byte later by
// slowS3Delay, as many at a time as come.
func (s *slowS3) carry(to, from net.Conn) {
	parcels := make(chan parcel, 1024)
	go func() {
		defer close(parcels)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				parcels <- parcel{buf[:n], time.Now().Add(slowS3Delay)}
			}
			if err != nil {
				return // io.EOF, or the end of the run
			}
		}
	}()
	for p := range parcels {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			from.Close() // ends the reader
		}
	}
	to.Close()
	s.mu.Lock()
	delete(s.conns, to)
	s.mu.Unlock()
}
