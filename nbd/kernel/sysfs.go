package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the kernel tells of its devices.
var sysBlock = "/sys/block"

// path is the device's file.
func path(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// find returns the index of the device that is connected and has an identity.
func find(identity string) (index int, found bool) {
	folders, _ := filepath.Glob(filepath.Join(sysBlock, "nbd*")) // the pattern is good
	for _, folder := range folders {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(folder), "nbd"))
		if err == nil && connected(index, identity) {
			return index, true
		}
	}
	return 0, false
}

// connected says whether a device has the identity and was not disconnected.
func connected(index int, identity string) bool {
	return attribute(index, "backend") == identity && attribute(index, "pid") != "0" && attribute(index, "pid") != ""
}

// attribute is a device's file in /sys; empty if there is none.
func attribute(index int, name string) string {
	data, err := os.ReadFile(filepath.Join(sysBlock, fmt.Sprintf("nbd%d", index), name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// sizeOf is the size in bytes that the kernel shows for a device.
func sizeOf(index int) (int64, error) {
	sectors, err := strconv.ParseInt(attribute(index, "size"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", path(index), err)
	}
	return sectors * 512, nil // sectors of /sys are always these: Documentation/ABI/stable/sysfs-block
}

// numbers are the device numbers of a device and its partitions, as /proc
// shows them, with their names in /dev.
func numbers(index int) map[string]string {
	base := filepath.Join(sysBlock, fmt.Sprintf("nbd%d", index))
	files, _ := filepath.Glob(filepath.Join(base, "nbd*", "dev")) // the pattern is good
	found := map[string]string{}
	for _, file := range append(files, filepath.Join(base, "dev")) {
		data, err := os.ReadFile(file)
		if err == nil {
			found[strings.TrimSpace(string(data))] = "/dev/" + filepath.Base(filepath.Dir(file))
		}
	}
	return found
}

// checkNode says why /dev does not show a device, which happens in containers.
func checkNode(index int) error {
	var st unix.Stat_t
	if err := unix.Stat(path(index), &st); err != nil {
		return fmt.Errorf("the kernel has the device, but %s cannot be seen here: %w", path(index), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("%s is not a block device", path(index))
	}
	return nil
}
