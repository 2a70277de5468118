package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A stateLock makes its holder the one daemon of a state folder. The kernel
// gives it up when the process ends, however it ends; the pid in the file is
// for people.
type stateLock struct{ file *os.File }

// lockState takes the lock of the state folder dir, or says at once who has it.
func lockState(dir string) (*stateLock, error) {
	path := filepath.Join(dir, "varve.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fail(Unavailable, "lock the state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fail(Unavailable, "lock %s: %w", path, err)
		}
		return nil, fail(InUse, "the state folder %s belongs to another daemon, %s: "+
			"talk to that one, stop it, or choose another folder with --state", dir, holder(f))
	}
	l := &stateLock{f}
	if err := l.sign(); err != nil {
		l.release()
		return nil, fail(Unavailable, "lock %s: %w", path, err)
	}
	return l, nil
}

// holder reads who has the lock.
func holder(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 32)) // A pid has at most 7 digits.
	pid, numErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || numErr != nil {
		return "which has not said its pid yet"
	}
	return fmt.Sprintf("pid %d", pid)
}

func (l *stateLock) sign() error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// release gives the lock up. The file stays: removing it would let two daemons
// lock two files of one name.
func (l *stateLock) release() error { return l.file.Close() }
