package freeze

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Host is where devices and mounts are looked up. The zero value is this
// machine.
type Host struct {
	Sys  string // instead of /sys
	Proc string // instead of /proc
}

func (h Host) sys(parts ...string) string {
	return filepath.Join(append([]string{orElse(h.Sys, "/sys")}, parts...)...)
}

func (h Host) proc(parts ...string) string {
	return filepath.Join(append([]string{orElse(h.Proc, "/proc")}, parts...)...)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// A mount is a line of mountinfo: proc_pid_mountinfo(5).
type mount struct {
	dev    string // "MAJOR:MINOR" of its files
	root   string // the folder of the file system that is seen
	point  string // absolute
	kind   string // "ext4", "fuse", …
	source string // "/dev/nbd0", or anything
}

// mounts returns what this process sees mounted, in the order of mounting.
func (h Host) mounts() ([]mount, error) {
	f, err := os.Open(h.proc("self/mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			all = append(all, m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return all, nil
}

// parseMount reads a line such as
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
func parseMount(line string) (mount, bool) {
	before, after, found := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !found || len(left) < 6 || len(right) < 2 {
		return mount{}, false
	}
	return mount{dev: left[2], root: unescape(left[3]), point: unescape(left[4]), kind: right[0], source: unescape(right[1])}, true
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline and
// backslash.
func unescape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if len(s) >= 4 && s[0] == '\\' {
			if n, err := strconv.ParseUint(s[1:4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// holding returns the mount that a path lies in: the longest mount point above
// it, the last of those mounted there.
func holding(all []mount, path string) (mount, bool) {
	var best mount
	for _, m := range all {
		if len(m.point) >= len(best.point) && within(path, m.point) {
			best = m
		}
	}
	return best, best.point != ""
}

func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// A Client is who serves or holds a device: an NBD client process, or what the
// kernel's own client was told to call its server.
type Client struct {
	PID     int    // 0: not known
	Backend string // contained in /sys/block/nbdN/backend; empty: not known
}

// Mounts returns a mount point for each file system that lies on a device of
// one of the clients. What cannot be read is left out.
func (h Host) Mounts(clients ...Client) []string {
	all, err := h.mounts()
	if err != nil {
		return nil
	}
	numbers := map[string]bool{} // MAJOR:MINOR
	for _, name := range h.devices(all, clients) {
		h.addStacked(name, numbers)
	}
	var points []string
	seen := map[string]bool{}
	for _, m := range all {
		on := m.dev
		if !numbers[on] {
			on = h.numberOf(m.source) // btrfs has numbers of its own
		}
		if !numbers[on] || seen[on] || strings.HasPrefix(m.kind, "fuse") && !strings.HasPrefix(m.kind, "fuseblk") {
			continue
		}
		// A mount point that another one covers leads elsewhere.
		if top, ok := holding(all, m.point); !ok || top.dev != m.dev {
			continue
		}
		seen[on] = true
		points = append(points, m.point)
	}
	return points
}

// numberOf is the number of the block device at a path in /dev, or empty.
func (h Host) numberOf(path string) string {
	if !strings.HasPrefix(path, "/dev/") {
		return ""
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return h.read("class/block", filepath.Base(path), "dev")
}

// read is the text of a file of /sys, or empty.
func (h Host) read(parts ...string) string {
	b, err := os.ReadFile(h.sys(parts...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// devices returns the names of the block devices that the clients serve.
func (h Host) devices(all []mount, clients []Client) []string {
	var names []string
	served := h.servedMounts(all, clients)
	for _, name := range children(h.sys("block")) {
		switch {
		case strings.HasPrefix(name, "nbd"):
			pid, _ := strconv.Atoi(h.read("block", name, "pid"))
			backend := h.read("block", name, "backend")
			if slices.ContainsFunc(clients, func(c Client) bool {
				return pid != 0 && c.PID == pid || c.Backend != "" && strings.Contains(backend, c.Backend)
			}) {
				names = append(names, name)
			}
		case strings.HasPrefix(name, "loop"):
			file := h.read("block", name, "loop/backing_file")
			if m, ok := holding(all, file); file != "" && ok && served[m.dev] {
				names = append(names, name)
			}
		}
	}
	return names
}

// servedMounts returns the FUSE mounts, by their number, that a client serves.
func (h Host) servedMounts(all []mount, clients []Client) map[string]bool {
	served := map[string]bool{}
	for _, c := range clients {
		if c.PID == 0 {
			continue
		}
		if numbers := h.fuseConnections(c.PID); numbers != nil {
			for _, n := range numbers {
				served["0:"+n] = true
			}
			continue
		}
		args := h.paths(c.PID)
		for _, m := range all {
			if strings.HasPrefix(m.kind, "fuse") && slices.Contains(args, m.point) {
				served[m.dev] = true
			}
		}
	}
	return served
}

// fuseConnections returns the numbers of the FUSE mounts that a process
// serves, from its descriptors; nil if the kernel does not tell (before 6.17).
func (h Host) fuseConnections(pid int) []string {
	dir := h.proc(strconv.Itoa(pid), "fdinfo")
	var numbers []string
	for _, fd := range children(dir) {
		b, err := os.ReadFile(filepath.Join(dir, fd))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if n, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				numbers = append(numbers, strings.TrimSpace(n))
			}
		}
	}
	return numbers
}

// paths returns the arguments of a process as absolute paths: a FUSE server is
// told where to mount.
func (h Host) paths(pid int) []string {
	b, err := os.ReadFile(h.proc(strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return nil
	}
	cwd, err := os.Readlink(h.proc(strconv.Itoa(pid), "cwd"))
	if err != nil {
		cwd = "/"
	}
	var paths []string
	for arg := range strings.SplitSeq(string(b), "\x00") {
		if arg == "" {
			continue
		}
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(cwd, arg)
		}
		paths = append(paths, filepath.Clean(arg))
	}
	return paths
}

// addStacked adds the number of a block device, of its partitions, and of what
// is stacked on these.
func (h Host) addStacked(name string, numbers map[string]bool) {
	number := h.read("class/block", name, "dev")
	if number == "" || numbers[number] {
		return
	}
	numbers[number] = true
	for _, part := range children(h.sys("class/block", name)) {
		if strings.HasPrefix(part, name) { // a partition: nbd0p1
			h.addStacked(part, numbers)
		}
	}
	for _, holder := range children(h.sys("class/block", name, "holders")) {
		h.addStacked(holder, numbers)
	}
}

// children are the names in a folder, or none.
func children(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// Process is the name of a process, or empty.
func (h Host) Process(pid int) string {
	b, err := os.ReadFile(h.proc(strconv.Itoa(pid), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
