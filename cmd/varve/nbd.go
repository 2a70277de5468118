package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"varve/agent"
	"varve/nbd"
)

func (p *program) nbdCommand() *cli.Command {
	command := p.verb("nbd", "FILE|VOLUME[@SNAPSHOT]", "serve one image, volume or snapshot over NBD without a daemon, until Ctrl-C or SIGTERM",
		append(listenFlags(),
			&cli.BoolFlag{Name: "read-only", Usage: "refuse writes"},
			&cli.StringFlag{Name: "format", Value: "auto", Usage: "`FORMAT` of the file: raw, qcow2 (only with --read-only), or auto"},
			&cli.BoolFlag{Name: "stdio", Usage: "serve one client on standard input and output, and end when it leaves"},
		), (*call).serveOne)
	command.Description = "What has a slash in it, or is a file, is a raw or qcow2 image or a block device. All else is a volume of the state folder, " +
		"which no daemon may have at the time. Without --nbd-listen, --stdio or sockets of a service manager a unix socket in a new folder is made. " +
		"The address to connect to is printed. Clients may ask for any export: there is one."
	return command
}

// serveOne serves one thing until ctx ends or the one client of stdio leaves.
func (c *call) serveOne() error {
	if c.directURL() != "" {
		return usagef("nbd: serves files and volumes, not what is on a target: mount it with varve --target URL mount, and serve the file")
	}
	if err := c.checkListen(); err != nil {
		return err
	}
	if format := c.String("format"); format != "auto" && format != "raw" && format != "qcow2" {
		return usagef("nbd: unknown format %q: there are raw, qcow2 and auto", format)
	}
	if c.Bool("stdio") && len(c.StringSlice("nbd-listen")) > 0 {
		return usagef("nbd: --stdio and --nbd-listen do not go together")
	}
	unix.Umask(0o077)
	log := newLog(c.stderr, c.onTerminal())
	one, err := c.openOne(c.args[0], log)
	if err != nil {
		return err
	}
	server := &nbd.Server{
		List: func(context.Context) ([]nbd.Listing, error) { return []nbd.Listing{{Name: ""}}, nil },
		Open: one.open, ConnContext: connContext, Log: log,
	}
	err = c.protect(server)
	if err == nil {
		err = c.serveOneWith(server)
	}
	return errors.Join(err, one.close())
}

// serveOneWith listens where the flags say, tells where that is, and serves.
func (c *call) serveOneWith(server *nbd.Server) error {
	listeners, cleanUp, err := c.listenOne()
	if err != nil {
		return err
	}
	defer cleanUp()
	said := c.stdout
	if c.Bool("stdio") {
		said = c.stderr
	}
	for _, l := range listeners {
		fmt.Fprintf(said, "varve: serving %s at %s\n", c.args[0], exportURI(l.Addr(), server.TLS != nil && l.Addr().Network() != "unix", ""))
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- server.Serve(context.WithoutCancel(c.ctx), l) }()
	}
	var failed error
	left := len(listeners)
	select {
	case <-c.ctx.Done():
	case failed = <-ended:
		left--
		if c.Bool("stdio") && errors.Is(failed, net.ErrClosed) {
			failed = nil // the one client has left
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	err = server.Shutdown(ctx)
	for range left {
		if ended := <-ended; !c.Bool("stdio") || !errors.Is(ended, net.ErrClosed) {
			err = errors.Join(err, ended)
		}
	}
	return errors.Join(failed, err)
}

// listenOne opens the listeners, and makes one if none is asked for.
func (c *call) listenOne() (listeners []net.Listener, cleanUp func(), err error) {
	cleanUp = func() {}
	if c.Bool("stdio") {
		l, err := c.stdioListener()
		if err != nil {
			return nil, nil, fmt.Errorf("--stdio: %w", err)
		}
		return []net.Listener{l}, cleanUp, nil
	}
	listeners, err = c.listenNBD()
	if err != nil || len(listeners) > 0 {
		return listeners, cleanUp, err
	}
	dir, err := os.MkdirTemp("", "varve-nbd-")
	if err != nil {
		return nil, nil, err
	}
	cleanUp = func() { os.RemoveAll(dir) }
	l, err := listenUnix(filepath.Join(dir, nbdSocketName))
	if err != nil {
		cleanUp()
		return nil, nil, err
	}
	return []net.Listener{l}, cleanUp, nil
}

// A served is what varve nbd serves.
type served struct {
	open  func(ctx context.Context, name string) (*nbd.Export, error) // whatever name is asked for
	close func() error
}

func (c *call) openOne(ref string, log *slog.Logger) (*served, error) {
	info, err := os.Stat(ref)
	switch {
	case err == nil && info.IsDir():
		return nil, usagef("nbd: %s is a folder: want a file, a block device or a volume", ref)
	case err == nil || strings.Contains(ref, "/"):
		return c.openServedFile(ref)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return c.openServedVolume(ref, log)
}

func (c *call) openServedFile(path string) (*served, error) {
	e := nbd.Export{Description: path, ReadOnly: c.Bool("read-only")}
	if !e.ReadOnly {
		d, err := c.openWritable(path)
		if err != nil {
			return nil, err
		}
		e.Device = d
		return &served{func(context.Context, string) (*nbd.Export, error) { copied := e; return &copied, nil }, func() error {
			return errors.Join(d.Flush(), d.Close())
		}}, nil
	}
	image, err := openImage(path, c.String("format"), false)
	if err != nil {
		return nil, err
	}
	if f, is := image.files[0].(*os.File); is {
		if err := lockFile(f, unix.LOCK_SH); err != nil {
			image.Close()
			return nil, err
		}
	}
	e.Device = nbd.ReadOnly(image)
	return &served{func(context.Context, string) (*nbd.Export, error) { copied := e; return &copied, nil }, func() error {
		image.Close()
		return nil
	}}, nil
}

// openWritable opens a raw image for writing.
func (c *call) openWritable(path string) (*rawDevice, error) {
	if c.String("format") != "raw" {
		image, err := openImage(path, "auto", false)
		if err != nil {
			return nil, err
		}
		_, raw := image.Layer.(*rawFile)
		image.Close()
		if !raw {
			return nil, usagef("nbd: %s is a qcow2 image, which can only be read: add --read-only, or import it as a volume", path)
		}
	}
	if c.String("format") == "qcow2" {
		return nil, usagef("nbd: qcow2 images can only be read: add --read-only")
	}
	return openRawDevice(path)
}

// openServedVolume takes the state folder, as a daemon does.
func (c *call) openServedVolume(ref string, log *slog.Logger) (*served, error) {
	state, err := c.state()
	if err != nil {
		return nil, err
	}
	places := stores{c.environ}
	a, err := agent.Start(context.WithoutCancel(c.ctx), agent.Config{
		State: state, FreezeHelper: []string{freezeHelperName}, OpenStore: places.open, CreateStore: places.create, Log: log,
	})
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, _ string) (*nbd.Export, error) {
		e, err := a.OpenExport(agent.WithAdmission(ctx, admission(ctx)), ref)
		if err != nil {
			return nil, err
		}
		out := nbdExport(e)
		out.ReadOnly = out.ReadOnly || c.Bool("read-only")
		return out, nil
	}
	e, err := a.OpenExport(c.ctx, ref) // an error now, not with the first client
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return &served{open, a.Close}, nil
}
