package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// passphrase is that of every target that a test makes.
const passphrase = "correct horse battery staple"

// patience bounds what a test waits for. Nothing is expected to take that long.
const patience = 5 * time.Minute

// A daemon is a varve serve on a state folder of its own.
type daemon struct {
	t       *testing.T
	program string
	state   string
	log     string // file, beside the state folder
	ready   string // the line that it said last when it was ready
	env     []string
	cmd     *exec.Cmd // nil while none runs
}

// startDaemon starts varve serve on a new state folder, and stops it when the
// test ends. env has NAME=VALUE words beside the test's own environment.
func startDaemon(t *testing.T, env ...string) *daemon {
	t.Helper()
	// A socket's path may have 107 bytes only, which t.TempDir can exceed.
	state, err := os.MkdirTemp("", "varve-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	d := newDaemon(t, state, env...)
	d.start()
	return d
}

// newDaemon is a daemon for a state folder that is there. It does not run yet;
// when the test ends, it is stopped.
func newDaemon(t *testing.T, state string, env ...string) *daemon {
	d := &daemon{t: t, program: program, state: state, log: state + ".log", env: env}
	t.Cleanup(func() { os.Remove(d.log) })
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", d.logged())
		}
		os.Remove(state + ".log")
	})
	return d
}

func (d *daemon) environ() []string {
	e := append(os.Environ(), "VARVE_STATE="+d.state, "VARVE_PASSPHRASE="+passphrase)
	return append(e, d.env...)
}

// start runs varve serve with flags and waits until it is ready. A failure ends
// the test.
func (d *daemon) start(flags ...string) {
	d.t.Helper()
	if err := d.launch(flags...); err != nil {
		d.t.Fatal(err)
	}
}

// launch runs varve serve with flags and waits for the line that says it is
// ready.
func (d *daemon) launch(flags ...string) error {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the daemon has its own
	cmd := exec.Command(d.program, append([]string{"serve"}, flags...)...)
	cmd.Env, cmd.Stderr = d.environ(), log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	answered := make(chan error, 1)
	var line string
	go func() {
		var err error
		line, err = bufio.NewReader(ready).ReadString('\n')
		answered <- err
	}()
	select {
	case err = <-answered:
	case <-time.After(patience):
		err = fmt.Errorf("not ready after %v", patience)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait() // it was killed, or has said why it ended in its log
		return fmt.Errorf("varve serve: %w\n%s", err, d.logged())
	}
	d.cmd, d.ready = cmd, line
	return nil
}

// stop ends the daemon as an operator would, and fails the test if it does not
// end cleanly.
func (d *daemon) stop() {
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Errorf("stop the daemon: %v", err)
	}
	late := time.AfterFunc(patience, func() {
		d.t.Errorf("the daemon did not stop within %v", patience)
		d.cmd.Process.Kill()
	})
	err := d.cmd.Wait()
	late.Stop()
	if err != nil {
		d.t.Errorf("the daemon ended with %v", err)
	}
	d.cmd = nil
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd.Wait() // It was killed: the error says so.
	d.cmd = nil
}

// destroy stops the daemon and removes its state: a lost host.
func (d *daemon) destroy() {
	d.t.Helper()
	d.stop()
	if err := os.RemoveAll(d.state); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Mkdir(d.state, 0o700); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) logged() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// uri names an export for clients of libnbd and QEMU.
func (d *daemon) uri(export string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, filepath.Join(d.state, "nbd.sock"))
}

// varve runs one command line and returns what it printed on standard output.
// A failure ends the test.
func (d *daemon) varve(args ...string) string {
	d.t.Helper()
	out, errout, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("varve %s: %v\n%s%s", strings.Join(args, " "), err, out, errout)
	}
	return out
}

// try runs one command line; the error is that of its exit status.
func (d *daemon) try(args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Minute)
	defer cancel()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(ctx, d.program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.environ(), &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

// value is one field of what a show command prints.
func (d *daemon) value(field string, args ...string) string {
	d.t.Helper()
	return strings.TrimSpace(d.varve(append(args, "-o", "value", "-c", field)...))
}

// client runs a program that is not ours and returns its standard output. A
// failure ends the test.
func client(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryClient(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryClient runs a program that is not ours and returns its standard output.
func tryClient(t *testing.T, name string, args ...string) (string, error) {
	// Also in a cleanup, when the test's own context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	var out, errout bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errout
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errout.String())
	}
	return out.String(), nil
}

// await returns when what is so; it looks often, and fails the test when its
// patience ends.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	late := time.After(patience)
	for !is() {
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("after %v it is still not so: %s", patience, what)
		}
	}
}
