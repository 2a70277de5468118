package kernel

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketPairs makes n connections: our ends, and the kernel's, which the caller
// closes once the kernel has taken them.
func socketPairs(n int) (ours []*net.UnixConn, theirs []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(theirs)
			for _, conn := range ours {
				conn.Close()
			}
		}
	}()
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return ours, theirs, fmt.Errorf("make a socket for the kernel: %w", err)
		}
		theirs = append(theirs, os.NewFile(uintptr(pair[1]), "the kernel's end"))
		file := os.NewFile(uintptr(pair[0]), "our end")
		conn, err := net.FileConn(file)
		file.Close() // FileConn has its own
		if err != nil {
			return ours, theirs, fmt.Errorf("make a socket for the kernel: %w", err)
		}
		ours = append(ours, conn.(*net.UnixConn))
	}
	return ours, theirs, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // nothing was written
	}
}

// flushesIO tells the kernel that this process must not wait for the writing
// back of memory while it needs some itself: prctl(2), PR_SET_IO_FLUSHER. Threads
// inherit it. It needs CAP_SYS_RESOURCE. Programs that are built with cgo cannot
// reach all their threads; ours is not.
func flushesIO() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
