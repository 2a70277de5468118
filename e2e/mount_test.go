package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mountPrefix begins the names of folders that tests mount in. The pid of the
// test process follows.
const mountPrefix = "varve-mounts-"

// mountFolder makes a folder in memory to mount file systems and keep images
// in. It goes away with the test, after the mounts.
func mountFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp(memory(), fmt.Sprintf("%s%d-", mountPrefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { clearMounts(folder) })
	return folder
}

// memory is where files are in memory, if the machine has such a place.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

// clearOrphans takes away what test processes that were killed have left
// mounted.
func clearOrphans() {
	folders, _ := filepath.Glob(filepath.Join(memory(), mountPrefix+"*")) // the pattern is good
	for _, folder := range folders {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(folder), mountPrefix), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, os.ErrNotExist) {
			clearMounts(folder)
		}
	}
}

// clearMounts removes a folder with all that is mounted in it and all loop
// devices on its files. A test that passed has left none of them.
func clearMounts(folder string) {
	points := mountsIn(folder)
	for i := len(points) - 1; i >= 0; i-- {
		exec.Command("umount", "-l", points[i]).Run() // if it is in use it goes later
	}
	backs, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, back := range backs {
		file, err := os.ReadFile(back)
		if err == nil && strings.HasPrefix(string(file), folder+"/") {
			exec.Command("losetup", "-d", "/dev/"+strings.Split(back, "/")[3]).Run()
		}
	}
	if len(mountsIn(folder)) == 0 { // never delete through a mount
		os.RemoveAll(folder)
	}
}

// mountsIn lists the mount points below a folder, in the order of mounting.
func mountsIn(folder string) []string {
	info, _ := os.ReadFile("/proc/self/mountinfo") // without /proc nothing works here
	var points []string
	for line := range strings.Lines(string(info)) {
		if words := strings.Fields(line); len(words) > 4 && strings.HasPrefix(words[4], folder+"/") {
			points = append(points, words[4])
		}
	}
	return points
}

func mounted(point string) bool {
	for _, p := range mountsIn(filepath.Dir(point)) {
		if p == point {
			return true
		}
	}
	return false
}
