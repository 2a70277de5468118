package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"varve/agent"
	"varve/agent/api"
	"varve/nbd"
)

// nbdSocketName is the name of the NBD socket in the state folder.
const nbdSocketName = "nbd.sock"

// stopWithin is how long the daemon waits, when it is told to stop, for each
// of: requests in flight, NBD clients, mounts.
const stopWithin = 20 * time.Second

// defaultPoll is how often the targets' lists of backups are read; leastPoll
// is as often as a target should bear.
const (
	defaultPoll = 5 * time.Minute
	leastPoll   = time.Second
)

func (p *program) serveCommand() *cli.Command {
	return p.verb("serve", "", "run the daemon: volumes, their NBD exports and the API, until Ctrl-C or SIGTERM",
		append(listenFlags(),
			&cli.StringFlag{Name: "nbd-socket", Usage: "`PATH` of the NBD socket; nbd.sock in the state folder if left out"},
			&cli.DurationFlag{Name: "poll-interval", Value: defaultPoll,
				Usage: "how often the targets are asked for backups that other hosts made or deleted; 0: only by target sync"},
			&cli.StringFlag{Name: "host-name", Usage: "`NAME` of this host in targets, for people; the machine's if left out"},
		), (*call).serve)
}

// serve runs the daemon until ctx ends.
func (c *call) serve() error {
	if c.directURL() != "" {
		return usagef("serve: --target is for commands without a daemon; targets are added with: varve target add NAME URL")
	}
	if err := c.checkListen(); err != nil {
		return err
	}
	if every := c.Duration("poll-interval"); every != 0 && every < leastPoll {
		return usagef("serve: --poll-interval %s: at least %s, or 0 for none", every, leastPoll)
	}
	// Volumes, keys and sockets are for the owner alone.
	unix.Umask(0o077)
	state, err := c.state()
	if err != nil {
		return err
	}
	d, err := c.startDaemon(state)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "varve: ready: API %s, NBD %s; example: %s\n", d.apiSocket, d.nbdAddresses(), volumeURI(d.nbdSocket, "VOLUME"))
	return d.run(c.ctx)
}

// A daemon is the agent with what faces outward: the API, the NBD exports and
// the mounts.
type daemon struct {
	log       *slog.Logger
	agent     *agent.Agent
	api       *api.Server
	nbd       *nbd.Server
	mounts    *mountTable
	apiSocket string
	nbdSocket string
	apiAt     net.Listener
	nbdAt     []net.Listener // the socket first
}

// startDaemon takes the state folder and listens. Whatever fails, nothing is
// left behind.
func (c *call) startDaemon(state string) (*daemon, error) {
	d := &daemon{
		log:       newLog(c.stderr, c.onTerminal()),
		apiSocket: filepath.Join(state, api.SocketName),
		nbdSocket: filepath.Join(state, nbdSocketName),
	}
	if path := c.String("nbd-socket"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("serve: --nbd-socket %s: %w", path, err)
		}
		d.nbdSocket = abs
	}
	for _, path := range []string{d.apiSocket, d.nbdSocket} {
		if err := api.CheckSocketPath(path); err != nil {
			return nil, err
		}
	}
	d.nbd = &nbd.Server{List: d.listExports, Open: d.openExport, ConnContext: connContext, Log: d.log}
	if err := c.protect(d.nbd); err != nil {
		return nil, err
	}
	places, devices := stores{c.environ}, newKernelDevices(d.log)
	a, err := agent.Start(context.WithoutCancel(c.ctx), agent.Config{
		State: state, FreezeHelper: []string{freezeHelperName}, Devices: devices,
		GuestRequests: func() int64 { return d.nbd.Requests() + devices.server.Requests() },
		OpenStore:     places.open, CreateStore: places.create, PollInterval: c.Duration("poll-interval"), Host: c.String("host-name"), Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	d.agent = a
	if err := d.listen(c); err != nil {
		return nil, errors.Join(err, d.closeListeners(), a.Close())
	}
	d.mounts = newMountTable(context.WithoutCancel(c.ctx), agentSource{a}, d.log)
	d.api = api.NewServer(api.Config{
		Agent: a, Mounts: d.mounts, Version: c.App.Version, Log: d.log,
		VolumeURI: func(volume string) string { return volumeURI(d.nbdSocket, volume) },
	})
	return d, nil
}

func (d *daemon) listen(c *call) error {
	at, err := listenUnix(d.nbdSocket)
	if err != nil {
		return err
	}
	d.nbdAt = append(d.nbdAt, at)
	more, err := c.listenNBD()
	if err != nil {
		return err
	}
	d.nbdAt = append(d.nbdAt, more...)
	d.apiAt, err = listenUnix(d.apiSocket)
	return err
}

func (d *daemon) closeListeners() error {
	var err error
	if d.apiAt != nil {
		err = d.apiAt.Close()
	}
	for _, l := range d.nbdAt {
		err = errors.Join(err, l.Close())
	}
	return err
}

// run serves until ctx ends or a listener breaks, then stops in the order in
// which things lean on each other: no new work, then its users, then the data.
func (d *daemon) run(ctx context.Context) error {
	ended := make(chan error, 1+len(d.nbdAt))
	serving := 1 + len(d.nbdAt)
	go func() { ended <- d.api.Serve(d.apiAt) }()
	for _, l := range d.nbdAt {
		go func() { ended <- d.nbd.Serve(context.WithoutCancel(ctx), l) }()
	}
	d.log.Info("serving", "state", filepath.Dir(d.apiSocket), "api", d.apiSocket, "nbd", d.nbdAddresses())

	var failed error
	select {
	case <-ctx.Done():
		d.log.Info("stopping")
	case failed = <-ended:
		serving--
		d.log.Error("stopping: a listener ended", "err", failed)
	}
	return errors.Join(failed, d.stop(ended, serving))
}

// stop ends everything and waits for the serving that still runs.
func (d *daemon) stop(ended <-chan error, serving int) error {
	within := func(stop func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		return stop(ctx)
	}
	err := errors.Join(
		wrap("stop the API", within(d.api.Shutdown)),
		wrap("stop NBD", within(d.nbd.Shutdown)),
		within(func(ctx context.Context) error { d.mounts.unmountAll(ctx); return nil }),
	)
	for range serving {
		err = errors.Join(err, <-ended)
	}
	err = errors.Join(err, wrap("close the state folder", d.agent.Close()))
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (d *daemon) listExports(ctx context.Context) ([]nbd.Listing, error) {
	all, err := d.agent.Exports(ctx)
	if err != nil {
		return nil, err
	}
	admit := admission(ctx)
	var out []nbd.Listing
	for _, e := range all {
		if admit(e.Properties) == nil {
			out = append(out, nbd.Listing{Name: e.Name, Description: e.Description})
		}
	}
	return out, nil
}

func (d *daemon) openExport(ctx context.Context, name string) (*nbd.Export, error) {
	e, err := d.agent.OpenExport(agent.WithAdmission(ctx, admission(ctx)), name)
	if err != nil {
		return nil, err
	}
	return nbdExport(e), nil
}

// nbdExport is an export of the agent as the server knows it.
func nbdExport(e *agent.Export) *nbd.Export {
	return &nbd.Export{
		Name: e.Name, Description: e.Description, Device: deviceOf(e), ReadOnly: !e.Writable,
		Contexts: contextsOf(e), Close: e.Close,
	}
}

// nbdAddresses are the places where NBD clients can connect, for people.
func (d *daemon) nbdAddresses() string {
	text := ""
	for _, l := range d.nbdAt {
		if text != "" {
			text += " and "
		}
		text += l.Addr().String()
	}
	return text
}

// volumeURI is the address of an export of a unix socket.
func volumeURI(socket, export string) string {
	return exportURI(&net.UnixAddr{Name: socket, Net: "unix"}, false, export)
}

// newLog writes text for people on a terminal and JSON for collectors
// elsewhere.
func newLog(w io.Writer, terminal bool) *slog.Logger {
	if terminal {
		return slog.New(slog.NewTextHandler(w, nil))
	}
	return slog.New(slog.NewJSONHandler(w, nil))
}
