package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// users says who uses a device or its partitions, a phrase each: mounts, swap,
// what is stacked on it, programs that have it open.
func users(index int) []string {
	devices := numbers(index)
	found := slices.Concat(mounts(devices), swaps(devices), holders(index))
	if len(found) == 0 {
		found = programs(devices)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// mounts looks in mountinfo: proc(5), fields 3 and 5.
func mounts(devices map[string]string) []string {
	var found []string
	eachLine("/proc/self/mountinfo", func(fields []string) {
		if len(fields) > 4 && devices[fields[2]] != "" {
			found = append(found, fmt.Sprintf("%s is mounted at %s", devices[fields[2]], unescape(fields[4])))
		}
	})
	return found
}

func swaps(devices map[string]string) []string {
	var found []string
	eachLine("/proc/swaps", func(fields []string) {
		for _, device := range devices {
			if len(fields) > 0 && fields[0] == device {
				found = append(found, device+" is swap space")
			}
		}
	})
	return found
}

// holders are devices made of it: LVM, device mapper, MD.
func holders(index int) []string {
	base := filepath.Join(sysBlock, fmt.Sprintf("nbd%d", index))
	var found []string
	for _, pattern := range []string{"holders/*", "nbd*/holders/*"} {
		entries, _ := filepath.Glob(filepath.Join(base, pattern)) // the pattern is good
		for _, entry := range entries {
			found = append(found, "/dev/"+filepath.Base(entry)+" is made of it")
		}
	}
	return found
}

// programs are those that have it open.
func programs(devices map[string]string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is good
	for _, link := range links {
		var st unix.Stat_t
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, "/dev/") || unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		device := devices[fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))]
		if device == "" {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm") // it may be gone
		found = append(found, fmt.Sprintf("%s is open in %s (pid %s)", device, strings.TrimSpace(string(name)), pid))
	}
	return found
}

// eachLine calls f with the words of each line of a file that may be missing.
func eachLine(file string, f func(fields []string)) {
	data, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		f(strings.Fields(line))
	}
}

// unescape undoes what mountinfo does to spaces and the like: proc(5).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
