package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// hostdisk DIR URI makes an ext4 file system on an NBD export and mounts it:
// nbdfuse shows the export as a file, a loop device makes it a disk. All of it
// goes at the end of the script, before the daemon.
func hostdiskCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) == 2, "hostdisk DIR URI")
	dir, fuse := ts.MkAbs(args[0]), ts.MkAbs(args[0]+".fuse")
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(os.MkdirAll(fuse, 0o700))
	server := exec.Command("nbdfuse", fuse, args[1])
	ts.Check(server.Start())
	ended := make(chan struct{})
	go func() {
		server.Wait() // It ends when it is unmounted.
		close(ended)
	}()
	ts.Defer(func() {
		unix.Unmount(fuse, unix.MNT_DETACH)
		<-ended
	})
	image := filepath.Join(fuse, "nbd")
	for deadline := time.Now().Add(daemonDeadline); ; {
		if _, err := os.Stat(image); err == nil {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nbdfuse does not show %s", image)
		}
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	ts.Check(err)
	loop := strings.TrimSpace(string(out))
	ts.Defer(func() { exec.Command("losetup", "-d", loop).Run() })
	ts.Check(ts.Exec("mkfs.ext4", "-q", loop))
	ts.Check(unix.Mount(loop, dir, "ext4", 0, ""))
	ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}
