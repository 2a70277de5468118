package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/agent/api"
)

// listenUnix makes a socket for its owner alone. One that is left from a daemon
// that died is replaced; one that somebody listens on is not, nor is a file
// that is no socket.
func listenUnix(path string) (net.Listener, error) {
	if err := api.CheckSocketPath(path); err != nil {
		return nil, err
	}
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	// The mask of the process is 077 by now: nobody else can connect between
	// these two calls.
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	own := &ownSocket{UnixListener: l.(*net.UnixListener), path: path, info: info}
	own.SetUnlinkOnClose(false)
	return own, nil
}

// lockFolder keeps others that make sockets in a folder out for a moment: of two
// that find the same stale socket the second would remove what the first has
// just made in its place.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	late := time.Now().Add(10 * time.Second)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(late) {
			f.Close()
			return nil, fmt.Errorf("lock %s to make a socket in it: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond) // others hold it for as long as a connect takes
	}
}

// removeStaleSocket removes a socket on which nobody listens. The folder is
// locked.
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
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	if err == nil || errors.Is(err, unix.EAGAIN) { // it listens, and has much to do
		return fmt.Errorf("somebody listens on %s: stop that, or choose another path", path)
	}
	return os.Remove(path)
}

// An ownSocket removes its file when it is closed, unless the path is another
// process's by then.
type ownSocket struct {
	*net.UnixListener
	path   string
	info   fs.FileInfo // of the file that was made
	closed sync.Once
}

// Close implements net.Listener.
func (l *ownSocket) Close() error {
	err := net.ErrClosed
	l.closed.Do(func() {
		if now, lerr := os.Lstat(l.path); lerr == nil && os.SameFile(now, l.info) {
			os.Remove(l.path) // one that stays is found stale by the next
		}
		err = l.UnixListener.Close()
	})
	return err
}
