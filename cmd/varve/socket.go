package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"varve/agent/api"
)

// listenUnix makes a socket for its owner alone. One that is left from a daemon
// that died is replaced; one that somebody listens on is not, nor is a file
// that is no socket.
func listenUnix(path string) (net.Listener, error) {
	if err := api.CheckSocketPath(path); err != nil {
		return nil, err
	}
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	// The mask of the process is 077 by now: nobody else can connect between
	// these two calls.
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: move it away", path)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return fmt.Errorf("somebody listens on %s: stop that, or choose another path", path)
	}
	return os.Remove(path)
}
