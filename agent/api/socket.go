package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// MaxSocketPath is the longest path of a unix socket in bytes: sun_path of
// unix(7) has 108, the last of them zero.
const MaxSocketPath = 107

// CheckSocketPath refuses a path that no socket can have.
func CheckSocketPath(path string) error {
	if len(path) > MaxSocketPath {
		return fmt.Errorf("socket path %s has %d bytes and Linux allows %d: choose a shorter state folder with --state or VARVE_STATE",
			path, len(path), MaxSocketPath)
	}
	return nil
}

// Listen makes the API's socket for its owner alone. A socket that is left
// from a daemon that died is replaced: the caller holds the state folder's
// lock.
func Listen(socket string) (net.Listener, error) {
	if err := CheckSocketPath(socket); err != nil {
		return nil, err
	}
	if err := removeSocket(socket); err != nil {
		return nil, err
	}
	// The mask of the process is 077, so that no other user can connect
	// between these two calls.
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeSocket removes a socket, and nothing that is not one.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket: move it away", path)
	}
	return os.Remove(path)
}
