package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// An nbdPeer is a way to serve a volume over NBD.
type nbdPeer struct {
	name   string
	what   string   // for the legend
	needs  []string // programs
	layers int      // snapshots, or backing files, below the top
	memory bool     // it has no file
	open   func(ctx context.Context, b *bench, dir string, size byteSize) (export, error)
}

var nbdPeers = []nbdPeer{
	{name: "varve", what: "volume without snapshots", needs: []string{underTest}, open: openVarve},
	{name: "varve+10", what: "volume with 10 snapshots", needs: []string{underTest}, layers: 10, open: openVarve},
	{name: "qcow2", what: "qemu-nbd, qcow2", needs: []string{"qemu-nbd", "qemu-img"}, open: openQcow2},
	{name: "qcow2+10", what: "qemu-nbd, qcow2 with 10 backing files", needs: []string{"qemu-nbd", "qemu-img"}, layers: 10, open: openQcow2},
	{name: "raw", what: "qemu-nbd, raw file", needs: []string{"qemu-nbd"}, open: openRaw},
	{name: "nbdkit", what: "nbdkit file plugin, raw file", needs: []string{"nbdkit"}, open: openNbdkit},
}

// An export is a peer's volume while it is served.
type export interface {
	// address is the unix socket and the export's name on it.
	address() (socket, name string)
	process() *server

	// certificates is the folder with the authority of a server that wants
	// TLS; "" for one that does not.
	certificates() string

	// push seals what there is and puts an empty layer on top.
	push(context.Context) error

	// fresh makes the top layer empty, of an export that has had a push. For
	// one that has no layers it does nothing.
	fresh(context.Context) error

	close() error
}

// uri is the address of an export for clients that are not ours.
func uri(e export) string {
	socket, name := e.address()
	if dir := e.certificates(); dir != "" {
		return "nbds+unix:///" + name + "?socket=" + socket + "&tls-certificates=" + dir + "&tls-hostname=localhost"
	}
	return "nbd+unix:///" + name + "?socket=" + socket
}

const exportName = "bench"

// A fileExport is a program that serves one thing without layers.
type fileExport struct {
	socket string
	server *server
	secure string // folder with the certificates of a server that wants TLS
}

func (e *fileExport) address() (string, string)   { return e.socket, exportName }
func (e *fileExport) process() *server            { return e.server }
func (e *fileExport) certificates() string        { return e.secure }
func (e *fileExport) fresh(context.Context) error { return nil }
func (e *fileExport) close() error                { return e.server.stop() }
func (e *fileExport) push(context.Context) error {
	return errors.New("a plain file has no layers")
}

func openRaw(ctx context.Context, _ *bench, dir string, size byteSize) (export, error) {
	return openFile(ctx, dir, size, func(file, socket string) []string { return qemuNBD("raw", socket, file) })
}

func openNbdkit(ctx context.Context, _ *bench, dir string, size byteSize) (export, error) {
	return openFile(ctx, dir, size, func(file, socket string) []string {
		return []string{"nbdkit", "--foreground", "--unix", socket, "file", file}
	})
}

// qemuNBD is the command that serves an image until it is told to end, to
// several clients, and otherwise with the defaults of qemu.
func qemuNBD(format, socket, image string) []string {
	return []string{"qemu-nbd", "--persistent", "--shared=16", "--discard=unmap", "--format=" + format,
		"--export-name=" + exportName, "--socket=" + socket, image}
}

// What a peer's folder holds: its file, if it has one, and its socket.
const (
	fileName   = "disk"
	socketName = "sock"
)

// openFile makes a sparse file and starts the program that serves it.
func openFile(ctx context.Context, dir string, size byteSize, command func(file, socket string) []string) (export, error) {
	file := filepath.Join(dir, fileName)
	if err := sparseFile(file, int64(size)); err != nil {
		return nil, err
	}
	return openServer(ctx, dir, func(socket string) []string { return command(file, socket) })
}

// openServer starts a program that serves at a socket in dir.
func openServer(ctx context.Context, dir string, command func(socket string) []string) (*fileExport, error) {
	socket := filepath.Join(dir, socketName)
	args := command(socket)
	s, err := startServer(ctx, socket, nil, args[0], args[1:]...)
	if err != nil {
		return nil, err
	}
	return &fileExport{socket: socket, server: s}, nil
}

func sparseFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// A qcow2Export is qemu-nbd on the top of a chain of images, in dir: 0.qcow2 is
// the lowest.
type qcow2Export struct {
	dir    string
	top    int
	server *server // nil while the chain is being changed
}

func openQcow2(ctx context.Context, _ *bench, dir string, size byteSize) (export, error) {
	e := &qcow2Export{dir: dir}
	if _, err := (task{}).run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", e.image(0), fmt.Sprint(int64(size))); err != nil {
		return nil, err
	}
	return e, e.start(ctx)
}

func (e *qcow2Export) image(i int) string {
	return filepath.Join(e.dir, fmt.Sprintf("%d.qcow2", i))
}

func (e *qcow2Export) address() (string, string) { return filepath.Join(e.dir, socketName), exportName }
func (e *qcow2Export) process() *server          { return e.server }
func (e *qcow2Export) certificates() string      { return "" }

func (e *qcow2Export) start(ctx context.Context) (err error) {
	socket, _ := e.address()
	args := qemuNBD("qcow2", socket, e.image(e.top))
	e.server, err = startServer(ctx, socket, nil, args[0], args[1:]...)
	return err
}

func (e *qcow2Export) close() error {
	if e.server == nil {
		return nil
	}
	s := e.server
	e.server = nil
	return s.stop()
}

func (e *qcow2Export) push(ctx context.Context) error {
	e.top++
	return e.fresh(ctx)
}

func (e *qcow2Export) fresh(ctx context.Context) error {
	if e.top == 0 {
		return nil
	}
	if err := e.close(); err != nil {
		return err
	}
	if _, err := (task{}).run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", e.image(e.top-1), e.image(e.top)); err != nil {
		return err
	}
	return e.start(ctx)
}
