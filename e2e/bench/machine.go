package main

import (
	"context"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A machine is where a run took place, as far as it helps to read figures.
type machine struct {
	CPU       string            `json:"cpu"`
	Cores     int               `json:"cores"`
	Memory    int64             `json:"memory_bytes"`
	Kernel    string            `json:"kernel"`
	LoadStart float64           `json:"load_start"`
	LoadEnd   float64           `json:"load_end"`
	Versions  map[string]string `json:"versions"` // of the programs, by name
}

// versionCommands print a version in their first line.
var versionCommands = map[string][]string{
	"fio":      {"fio", "--version"},
	"nbdcopy":  {"nbdcopy", "--version"},
	"nbdkit":   {"nbdkit", "--version"},
	"qemu-nbd": {"qemu-nbd", "--version"},
	"restic":   {"restic", "version"},
	"borg":     {"borg", "--version"},
	"zstd":     {"zstd", "--version"},
	"mke2fs":   {"mke2fs", "-V"},
}

func describeMachine(ctx context.Context, b *bench) machine {
	m := machine{Cores: runtime.NumCPU(), LoadStart: loadAverage(), Versions: map[string]string{}}
	m.CPU = afterColon("/proc/cpuinfo", "model name")
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(raw))
	}
	for name, command := range versionCommands {
		m.Versions[name] = firstLine(ctx, command)
	}
	m.Versions["bench"] = runtime.Version()
	m.Versions["varve"] = firstLine(ctx, []string{b.varve, "--version"})
	return m
}

// firstLine is the first line that a command prints, or why there is none.
func firstLine(ctx context.Context, command []string) string {
	var out tail
	if _, err := (task{stdout: &out, stderr: &out}).run(ctx, command[0], command[1:]...); err != nil {
		return "missing"
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	return line
}

// afterColon is the value of the first line of a file that begins with key.
func afterColon(path, key string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
