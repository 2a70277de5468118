package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"varve": main}) }

// The scripts run the real command against a real daemon, on a state folder in
// $WORK/s. Beside testscript's own commands they have those of scriptCommands,
// and the conditions of missing.
func TestScripts(t *testing.T) {
	// A socket's path has at most 107 bytes, and t.TempDir may take most.
	root, err := os.MkdirTemp("", "vs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands,
		Condition:           missing,
		Setup: func(e *testscript.Env) error {
			e.Setenv("VARVE_STATE", filepath.Join(e.WorkDir, "s"))
			e.Setenv("PATH", e.Getenv("PATH")+":/usr/sbin:/sbin")
			// A program that was built with the race detector sleeps for a second
			// before it ends, in case something else still races then.
			e.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
			e.Values[daemonKey{}] = new(scriptDaemon)
			return nil
		},
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"daemon":   daemonCommand,
	"shutdown": shutdownCommand,
	"crash":    crashCommand,
	"exits":    exitsCommand,
	"capture":  captureCommand,
	"pattern":  patternCommand,
	"flip":     flipCommand,
	"cut":      cutCommand,
	"tmpfs":    tmpfsCommand,
	"hostdisk": hostdiskCommand,
}

// missing answers the conditions [tool:NAME], [root] and [fuse], on which
// scripts skip. With STRICT=1 nothing may be missing.
func missing(condition string) (bool, error) {
	there := false
	switch kind, name, _ := strings.Cut(condition, ":"); kind {
	case "tool":
		_, err := exec.LookPath(name)
		there = err == nil
	case "root":
		there = os.Geteuid() == 0
	case "fuse":
		there = unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) == nil
	default:
		return false, fmt.Errorf("unknown condition %s", condition)
	}
	if !there && os.Getenv("STRICT") == "1" {
		return false, fmt.Errorf("this machine lacks %s, and STRICT is 1", condition)
	}
	return there, nil
}

// exits CODE PROGRAM ARG... runs a program and holds it to an exit code.
func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) >= 2, "exits CODE PROGRAM ARG...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// capture VAR PROGRAM ARG... keeps what a program prints in a variable.
func captureCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) >= 2, "capture VAR PROGRAM ARG...")
	ts.Check(ts.Exec(args[1], args[2:]...))
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// pattern FILE SIZE SEED writes a file that does not compress, with a hole in
// its second quarter.
func patternCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) == 3, "pattern FILE SIZE SEED")
	size, err := parseSize(args[1])
	ts.Check(err)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	data := make([]byte, size)
	var key [32]byte
	key[0] = byte(seed)
	rand.NewChaCha8(key).Read(data) // never fails
	clear(data[size/4 : size/2])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// flip GLOB [OFFSET] changes a byte of the largest file that matches, the one in
// its middle if no other is named.
func flipCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) == 1 || len(args) == 2, "flip GLOB [OFFSET]")
	path, size := largest(ts, args[0])
	off := size / 2
	if len(args) == 2 {
		n, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		off = n
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	_, err = f.WriteAt([]byte{b[0] ^ 0x40}, off)
	ts.Check(err)
}

// cut GLOB truncates the largest file that matches to half.
func cutCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) == 1, "cut GLOB")
	path, size := largest(ts, args[0])
	ts.Check(os.Truncate(path, size/2))
}

// largest is the largest regular file below a folder whose path from there
// matches a glob: DIR//GLOB.
func largest(ts *testscript.TestScript, where string) (path string, size int64) {
	dir, glob, _ := strings.Cut(where, "//")
	root := ts.MkAbs(dir)
	ts.Check(filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if match, err := filepath.Match(glob, d.Name()); err != nil {
			return err
		} else if match && info.Size() > size {
			path, size = p, info.Size()
		}
		return nil
	}))
	if path == "" {
		ts.Fatalf("no file matches %s", where)
	}
	return path, size
}

// tmpfs DIR SIZE mounts a small file system.
func tmpfsCommand(ts *testscript.TestScript, neg bool, args []string) {
	takes(ts, neg, len(args) == 2, "tmpfs DIR SIZE")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mount("varve-test", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

func takes(ts *testscript.TestScript, neg, ok bool, usage string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", usage)
	}
}
