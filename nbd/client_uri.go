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
//	nbd+unix:///EXPORT?socket=PATH
//	nbd://HOST[:PORT]/EXPORT
//	nbd:unix:PATH[:exportname=EXPORT]
//	nbd:HOST:PORT[:exportname=EXPORT]
//
// What it does not understand it refuses, above all what asks for encryption.
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
	case "nbd", "nbd+unix":
	case "nbds", "nbds+unix":
		return Address{}, fmt.Errorf("TLS is not supported: use nbd or nbd+unix, through a tunnel if the network is not trusted")
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
	socket := query.Get("socket")
	for name := range query {
		if name != "socket" {
			return Address{}, fmt.Errorf("parameter %q is not supported", name)
		}
	}
	export := strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Scheme == "nbd" && socket != "":
		return Address{}, fmt.Errorf("a socket goes with nbd+unix")
	case u.Scheme == "nbd" && u.Hostname() == "":
		return Address{}, fmt.Errorf("the host is missing: nbd://HOST:PORT/EXPORT")
	case u.Scheme == "nbd":
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		return Address{"tcp", net.JoinHostPort(u.Hostname(), port), export}, nil
	case u.Host != "":
		return Address{}, fmt.Errorf("host %q with a unix socket: write three slashes, nbd+unix:///EXPORT?socket=PATH", u.Host)
	case socket == "":
		return Address{}, fmt.Errorf("the socket is missing: nbd+unix:///EXPORT?socket=PATH")
	}
	return Address{"unix", socket, export}, nil
}

// parseLegacy reads what follows "nbd:" in QEMU's older forms.
func parseLegacy(s string) (Address, error) {
	where, export, _ := strings.Cut(s, ":exportname=")
	if path, is := strings.CutPrefix(where, "unix:"); is {
		if path == "" {
			return Address{}, fmt.Errorf("the socket is missing: nbd:unix:PATH")
		}
		return Address{"unix", path, export}, nil
	}
	host, port, err := net.SplitHostPort(where)
	if err != nil || host == "" || port == "" {
		return Address{}, fmt.Errorf("want nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	}
	return Address{"tcp", net.JoinHostPort(host, port), export}, nil
}
