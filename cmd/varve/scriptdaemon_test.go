package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// daemonDeadline bounds a start and a stop of the daemon.
const daemonDeadline = 5 * time.Minute

// daemonKey is where a script's values have its *scriptDaemon.
type daemonKey struct{}

// A scriptDaemon is the daemon of a script, if it runs.
type scriptDaemon struct{ cmd *exec.Cmd }

// daemon [FLAG...] starts varve serve and waits for the line that says it is
// ready, which goes to the file ready. Its log is appended to the file log, and
// DAEMON_PID says which it is.
func daemonCommand(ts *testscript.TestScript, neg bool, args []string) {
	d := ts.Value(daemonKey{}).(*scriptDaemon)
	takes(ts, neg, d.cmd == nil, "daemon [FLAG...], once")
	log, err := os.OpenFile(ts.MkAbs("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	defer log.Close()
	self, err := os.Executable()
	ts.Check(err)
	cmd := exec.Command(self, append([]string{"serve"}, args...)...)
	cmd.Args[0] = "varve" // by which testscript.Main knows what to be
	cmd.Dir, cmd.Stderr = ts.MkAbs("."), log
	for _, name := range []string{"PATH", "VARVE_STATE", "HOME", "TMPDIR", "GORACE"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	d.cmd = cmd
	ts.Defer(func() {
		if d.cmd != nil {
			d.end(syscall.SIGTERM) // a kill would leave mounts behind
		}
	})
	late := time.AfterFunc(daemonDeadline, func() { cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	late.Stop()
	ts.Check(os.WriteFile(ts.MkAbs("ready"), []byte(line), 0o600))
	if err != nil {
		ended := d.end(syscall.SIGKILL)
		ts.Fatalf("varve serve: %v, %v\n%s", err, ended, ts.ReadFile("log"))
	}
	go io.Copy(io.Discard, stdout) // until it ends
	ts.Setenv("DAEMON_PID", strconv.Itoa(cmd.Process.Pid))
}

// shutdown ends the daemon with SIGTERM, and fails if it does not end well.
func shutdownCommand(ts *testscript.TestScript, neg bool, args []string) {
	d := ts.Value(daemonKey{}).(*scriptDaemon)
	takes(ts, neg, d.cmd != nil && len(args) == 0, "shutdown, while the daemon runs")
	if err := d.end(syscall.SIGTERM); err != nil {
		ts.Fatalf("varve serve: %v\n%s", err, ts.ReadFile("log"))
	}
}

// crash ends the daemon with SIGKILL.
func crashCommand(ts *testscript.TestScript, neg bool, args []string) {
	d := ts.Value(daemonKey{}).(*scriptDaemon)
	takes(ts, neg, d.cmd != nil && len(args) == 0, "crash, while the daemon runs")
	var exit *exec.ExitError
	if err := d.end(syscall.SIGKILL); !errors.As(err, &exit) {
		ts.Fatalf("kill varve serve: %v", err)
	}
}

// end signals the daemon, waits for its end and returns how that was.
func (d *scriptDaemon) end(s syscall.Signal) error {
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(s); err != nil {
		return err
	}
	late := time.AfterFunc(daemonDeadline, func() { cmd.Process.Kill() })
	defer late.Stop()
	return cmd.Wait()
}
