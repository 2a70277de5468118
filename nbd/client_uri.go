package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// DefaultPort is the TCP port of a URI that names none: "Values", registered
// with IANA.
const DefaultPort = "10809"

// An Address is where an export is served.
type Address struct {
	Network string // "unix" or "tcp"
	Host    string // the socket's path, or HOST:PORT
	Export  string // empty for the default export

	TLS          bool   // encrypted or not at all
	Certificates string // folder with the files of TLS; empty: the system's authorities
	ServerName   string // that the server's certificate must have
	Unverified   bool   // any certificate will do
}

// IsURI reports whether s looks like the address of an export, also of a kind
// that ParseURI refuses.
func IsURI(s string) bool {
	scheme, _, found := strings.Cut(s, ":")
	if !found {
		return false
	}
	scheme, _, _ = strings.Cut(scheme, "+")
	return scheme == "nbd" || scheme == "nbds"
}

// ParseURI reads the address of an export in one of these forms. The first two
// are those of the NBD URI specification (NetworkBlockDevice/nbd, doc/uri.md),
// the others QEMU's own.
//
//	nbd+unix:///EXPORT?socket=PATH   nbds+unix:///EXPORT?socket=PATH
//	nbd://HOST[:PORT]/EXPORT         nbds://HOST[:PORT]/EXPORT
//	nbd:unix:PATH[:exportname=EXPORT]
//	nbd:HOST:PORT[:exportname=EXPORT]
//
// The forms with nbds are encrypted. They may have these parameters, which are
// libnbd's:
//
//	tls-certificates=DIR   folder with ca-cert.pem, client-cert.pem, client-key.pem
//	tls-hostname=NAME      that the server's certificate must have; HOST or localhost
//	tls-verify-peer=false  take any certificate
//
// What it does not understand it refuses.
func ParseURI(s string) (Address, error) {
	a, err := parseURI(s)
	switch {
	case err != nil:
		return Address{}, fmt.Errorf("NBD address %q: %w", s, err)
	case len(a.Export) > maxString:
		return Address{}, fmt.Errorf("NBD address %.40q…: the name of the export has %d bytes, and %d are allowed", s, len(a.Export), maxString)
	}
	return a, nil
}

func parseURI(s string) (Address, error) {
	rest, isNBD := strings.CutPrefix(s, "nbd:")
	if isNBD && !strings.HasPrefix(rest, "//") {
		return parseLegacy(rest)
	}
	u, err := url.Parse(s)
	if err != nil {
		if inner, is := err.(*url.Error); is {
			err = inner.Err // without the address a second time
		}
		return Address{}, err
	}
	switch u.Scheme {
	case "nbd", "nbd+unix", "nbds", "nbds+unix":
	default:
		return Address{}, fmt.Errorf("scheme %q is not supported: use nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH", u.Scheme)
	}
	if u.User != nil || u.Fragment != "" {
		return Address{}, fmt.Errorf("a user and a fragment have no meaning here")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Address{}, err
	}
	scheme, overUnix := strings.CutSuffix(u.Scheme, "+unix")
	a := Address{Export: strings.TrimPrefix(u.Path, "/"), TLS: scheme == "nbds"}
	if err := a.takeParameters(query); err != nil {
		return Address{}, err
	}
	socket := query.Get("socket")
	switch {
	case !overUnix && socket != "":
		return Address{}, fmt.Errorf("a socket goes with %s+unix", scheme)
	case !overUnix && u.Hostname() == "":
		return Address{}, fmt.Errorf("the host is missing: %s://HOST:PORT/EXPORT", scheme)
	case !overUnix:
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		a.Network, a.Host = "tcp", net.JoinHostPort(u.Hostname(), port)
		return a.named(u.Hostname()), nil
	case u.Host != "":
		return Address{}, fmt.Errorf("host %q with a unix socket: write three slashes, %s:///EXPORT?socket=PATH", u.Host, u.Scheme)
	case socket == "":
		return Address{}, fmt.Errorf("the socket is missing: %s:///EXPORT?socket=PATH", u.Scheme)
	}
	a.Network, a.Host = "unix", socket
	return a.named("localhost"), nil
}

// takeParameters takes those of TLS, and refuses what is unknown.
func (a *Address) takeParameters(query url.Values) error {
	for name := range query {
		value := query.Get(name)
		switch {
		case name == "socket":
		case !a.TLS && strings.HasPrefix(name, "tls-"):
			return fmt.Errorf("parameter %q goes with nbds and nbds+unix", name)
		case name == "tls-certificates" && value != "":
			a.Certificates = value
		case name == "tls-hostname" && value != "":
			a.ServerName = value
		case name == "tls-verify-peer" && (value == "true" || value == "false"):
			a.Unverified = value == "false"
		case strings.HasPrefix(name, "tls-"):
			return fmt.Errorf("parameter %s=%s is not supported", name, value)
		default:
			return fmt.Errorf("parameter %q is not supported", name)
		}
	}
	return nil
}

// named is a with the name of the server, unless a parameter gave one.
func (a Address) named(host string) Address {
	if a.TLS && a.ServerName == "" {
		a.ServerName = host
	}
	return a
}

// parseLegacy reads what follows "nbd:" in QEMU's older forms.
func parseLegacy(s string) (Address, error) {
	where, export, _ := strings.Cut(s, ":exportname=")
	if path, is := strings.CutPrefix(where, "unix:"); is {
		if path == "" {
			return Address{}, fmt.Errorf("the socket is missing: nbd:unix:PATH")
		}
		return Address{Network: "unix", Host: path, Export: export}, nil
	}
	host, port, err := net.SplitHostPort(where)
	if err != nil || host == "" || port == "" {
		return Address{}, fmt.Errorf("want nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	}
	return Address{Network: "tcp", Host: net.JoinHostPort(host, port), Export: export}, nil
}
