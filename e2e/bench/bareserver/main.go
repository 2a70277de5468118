// Command bareserver serves what no program does and make bench needs: a device
// that does nothing, behind package nbd and behind go-nbd's own server, and a
// file behind the latter. What is measured then is a server and no storage.
//
//	bareserver [-tls FOLDER] varve SOCKET SIZE
//	bareserver go-nbd SOCKET SIZE|FILE
//
// It serves one export under any name until a signal ends it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/pojntfx/go-nbd/pkg/backend"
	gonbd "github.com/pojntfx/go-nbd/pkg/server"

	"varve/layers"
	"varve/nbd"
)

func main() {
	certificates := flag.String("tls", "", "offer TLS with the certificates in `folder`")
	flag.Parse()
	if err := serve(*certificates, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bareserver:", err)
		os.Exit(1)
	}
}

func serve(certificates string, args []string) error {
	if len(args) != 3 {
		return errors.New("want varve or go-nbd, a socket, and a size or file")
	}
	l, err := net.Listen("unix", args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "varve":
		return serveVarve(l, certificates, args[2])
	case "go-nbd":
		return serveGoNBD(l, args[2])
	}
	return fmt.Errorf("no server is called %q", args[0])
}

func serveVarve(l net.Listener, certificates, size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	server := &nbd.Server{Open: func(_ context.Context, name string) (*nbd.Export, error) {
		return &nbd.Export{Name: name, Device: null{n}}, nil
	}}
	if certificates != "" {
		if server.TLS, err = nbd.ServerTLS(certificates, false); err != nil {
			return err
		}
	}
	return server.Serve(context.Background(), l)
}

func serveGoNBD(l net.Listener, what string) error {
	device, err := goNBDBackend(what)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			exports := []*gonbd.Export{{Name: "bench", Backend: device}}
			if err := gonbd.Handle(conn, exports, &gonbd.Options{SupportsMultiConn: true}); err != nil {
				slog.Warn("connection ended", "error", err)
			}
		}()
	}
}

func goNBDBackend(what string) (backend.Backend, error) {
	if n, err := strconv.ParseInt(what, 10, 64); err == nil {
		return nbd.AsBackend(null{n}), nil
	}
	f, err := os.OpenFile(what, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return backend.NewFileBackend(f), nil
}

// null is a device of that many bytes that forgets what is written. Reads give
// bytes that are not zeros, so that no reply can be made shorter for them; they
// cost what nbdkit's null plugin pays for its zeros.
type null struct{ size int64 }

// content is what every read gives, over and over.
var content = func() (p [64 << 10]byte) {
	for i := range p {
		p[i] = cmp.Or(byte(i), 1)
	}
	return p
}()

func (d null) Size() int64 { return d.size }

func (d null) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		done += copy(p[done:], content[:])
	}
	return len(p), nil
}

func (d null) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }
func (d null) WriteZeroes(off, n int64) error           { return nil }
func (d null) Flush() error                             { return nil }

func (d null) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		all := layers.Extent{Len: d.size, Kind: layers.Data}
		if e := all.Clip(off, n); e.Len > 0 {
			yield(e, nil)
		}
	}
}
