package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"varve/nbd"
)

// listenFlags say where NBD is served, and how it is protected.
func listenFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "nbd-listen", Aliases: []string{"listen"},
			Usage: "serve NBD at `ADDRESS` too: HOST:PORT or unix:PATH; may repeat. Without TLS only loopback, where every user of this machine can connect"},
		&cli.StringFlag{Name: "tls-certificates", Usage: "`FOLDER` with server-cert.pem, server-key.pem, ca-cert.pem and maybe ca-crl.pem: TCP wants TLS then, unix sockets offer it"},
		&cli.BoolFlag{Name: "tls-verify-peer", Usage: "clients must have a certificate that ca-cert.pem has signed"},
		&cli.BoolFlag{Name: "insecure", Usage: "serve TCP to other machines without TLS: whoever reaches the port reads and writes everything"},
	}
}

// checkListen refuses listenFlags that do not fit together, before anything is
// begun.
func (c *call) checkListen() error {
	command := commandName(c.Context)
	if c.Bool("tls-verify-peer") && c.String("tls-certificates") == "" {
		return usagef("%s: --tls-verify-peer needs --tls-certificates", command)
	}
	for _, address := range c.StringSlice("nbd-listen") {
		if strings.HasPrefix(address, "unix:") {
			if address == "unix:" {
				return usagef("%s: --nbd-listen unix:PATH: the path is missing", command)
			}
			continue
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return usagef("%s: --nbd-listen %s: want HOST:PORT, such as 127.0.0.1:10809, or unix:PATH", command, address)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && !c.mayReachOut() {
			return usagef("%s: --nbd-listen %s: only loopback addresses without TLS, as NBD has no protection of its own: "+
				"add --tls-certificates FOLDER, use 127.0.0.1 with a tunnel, or allow it with --insecure", command, address)
		}
	}
	return nil
}

// mayReachOut says whether TCP may be served to other machines.
func (c *call) mayReachOut() bool { return c.Bool("insecure") || c.String("tls-certificates") != "" }

// protect gives a server what listenFlags say of TLS.
func (c *call) protect(s *nbd.Server) error {
	dir := c.String("tls-certificates")
	if dir == "" {
		return nil
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		s.TLS, err = nbd.ServerTLS(dir, c.Bool("tls-verify-peer"))
	}
	if err != nil {
		return err
	}
	if !c.Bool("insecure") {
		s.RequireTLS = func(conn net.Conn) bool { return !isLocal(conn) }
	}
	return nil
}

// isLocal says whether a connection came over a unix socket, whose permissions
// say who may.
func isLocal(conn net.Conn) bool { return conn.LocalAddr().Network() == "unix" }

// listenNBD opens what --nbd-listen and systemd give.
func (c *call) listenNBD() ([]net.Listener, error) {
	all, err := c.activated()
	if err != nil {
		return nil, err
	}
	for _, address := range c.StringSlice("nbd-listen") {
		var l net.Listener
		path, isUnix := strings.CutPrefix(address, "unix:")
		if isUnix {
			if path, err = filepath.Abs(path); err == nil {
				l, err = listenUnix(path)
			}
		} else {
			l, err = net.Listen("tcp", address)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: %w", address, err), closeAll(all))
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(listeners []net.Listener) (err error) {
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// firstActivated is the first descriptor that a service manager passes:
// sd_listen_fds(3), SD_LISTEN_FDS_START.
const firstActivated = 3

// activated are the sockets that systemd, or who does as it does, listens on for
// this process: sd_listen_fds(3).
func (c *call) activated() ([]net.Listener, error) {
	if c.getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	count, err := strconv.Atoi(c.getenv("LISTEN_FDS"))
	if err != nil || count < 0 || count > 1000 {
		return nil, usagef("LISTEN_FDS=%s is not a number of sockets", c.getenv("LISTEN_FDS"))
	}
	var all []net.Listener
	for fd := firstActivated; fd < firstActivated+count; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "LISTEN_FDS")
		l, err := net.FileListener(f)
		f.Close() // l has one of its own
		if err == nil && !c.mayReachOut() && !isLoopback(l.Addr()) {
			err = errors.Join(fmt.Errorf("%s can be reached by other machines: add --tls-certificates FOLDER, or allow it with --insecure", l.Addr()), l.Close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("socket %d that was passed by LISTEN_FDS: %w", fd, err), closeAll(all))
		}
		if u, is := l.(*net.UnixListener); is {
			u.SetUnlinkOnClose(false) // it is the manager's
		}
		all = append(all, l)
	}
	return all, nil
}

func isLoopback(a net.Addr) bool {
	tcp, is := a.(*net.TCPAddr)
	return !is || tcp.IP.IsLoopback()
}

// exportURI is the address of an export at a listener, for clients.
func exportURI(at net.Addr, secure bool, export string) string {
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	if at.Network() != "unix" {
		return scheme + "://" + at.String() + "/" + url.PathEscape(export)
	}
	// A slash may stand in a query (RFC 3986, section 3.4), and reads better.
	socket := strings.ReplaceAll(url.QueryEscape(at.String()), "%2F", "/")
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + strings.ReplaceAll(socket, "+", "%20")
}

// allowProperty is the property of a volume that names who may use it over the
// network, by names in their certificates, with commas between.
const allowProperty = "nbd-allow"

// connContext adds to the context of a new connection what openExport asks.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(withPeer(ctx, conn), localKey{}, isLocal(conn))
}

type localKey struct{}

// admission decides which volumes the client may see and open for which the
// server got ctx. Local ones have passed the permissions of a socket.
func admission(ctx context.Context) func(properties map[string]string) error {
	local, _ := ctx.Value(localKey{}).(bool)
	return func(properties map[string]string) error {
		list, limited := properties[allowProperty]
		if !limited || local {
			return nil
		}
		if nbd.TLSState(ctx) == nil {
			return nbd.ErrTLSRequired
		}
		names := nbd.PeerNames(ctx)
		for allowed := range strings.SplitSeq(list, ",") {
			if slices.Contains(names, strings.TrimSpace(allowed)) {
				return nil
			}
		}
		return fmt.Errorf("the volume's property %s has none of the names in your certificate, %q", allowProperty, names)
	}
}
