package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100
// on every architecture that Go runs on (proc_pid_stat(5), time(7)).
const clockTick = time.Second / 100

// cpuTime is the processor time that all threads of a process have used so
// far, in user and system mode, without its children.
func cpuTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	return parseStat(raw)
}

// treeTime is that of a process and all its children, those that have ended
// too: there are servers with a process for each connection.
func treeTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	sum, err := parseTimes(raw, 4)
	if err != nil {
		return 0, err
	}
	children, err := filepath.Glob(procFile(pid, "task/*/children"))
	if err != nil {
		return 0, err
	}
	for _, list := range children {
		raw, _ := os.ReadFile(list) // a thread that has ended has none
		for _, field := range strings.Fields(string(raw)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", list, err)
			}
			took, err := treeTime(child)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // it ends just now
				return 0, err
			}
			sum += took
		}
	}
	return sum, nil
}

// parseStat reads fields 14 and 15, utime and stime, of /proc/PID/stat.
func parseStat(raw []byte) (time.Duration, error) { return parseTimes(raw, 2) }

// parseTimes adds up the first of the fields from the 14th on, utime, stime,
// cutime and cstime, of /proc/PID/stat. Field 2, the program's name in
// parentheses, may itself hold spaces and parentheses.
func parseTimes(raw []byte, count int) (time.Duration, error) {
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 11+count {
		return 0, fmt.Errorf("unexpected form of /proc/PID/stat: %q", raw)
	}
	var ticks int64
	for _, field := range fields[11 : 11+count] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("unexpected form of /proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// peakRSS is the highest resident size of a process, in bytes, since it started
// or since resetPeakRSS.
func peakRSS(pid int) (int64, error) {
	raw, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(raw), "VmHWM:")
	if !ok {
		return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
	}
	line, _, _ := strings.Cut(after, "\n")
	kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(line), " kB"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/status: VmHWM: %w", pid, err)
	}
	return kib << 10, nil
}

// resetPeakRSS makes the present resident size of a process its highest one:
// proc_pid_clear_refs(5), value 5.
func resetPeakRSS(pid int) error {
	return os.WriteFile(procFile(pid, "clear_refs"), []byte("5"), 0)
}

// loadAverage is the machine's load average of the last minute, or 0 if the
// kernel does not tell.
func loadAverage() float64 {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
