package e2e

import (
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

// A daemon is a varve serve on a state folder of its own.
type daemon struct {
	t     *testing.T
	state string
	env   []string
	cmd   *exec.Cmd
	log   *os.File
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
	d := &daemon{t: t, state: state, env: env}
	d.start()
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

// start runs varve serve with flags and waits for the line that says it is ready.
func (d *daemon) start(flags ...string) {
	d.t.Helper()
	log, err := os.OpenFile(d.state+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	d.log = log
	d.cmd = exec.Command(program, append([]string{"serve"}, flags...)...)
	d.cmd.Env = d.environ()
	d.cmd.Stderr = log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ready, err := d.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := ready.Read(make([]byte, 4096))
		answered <- err
	}()
	select {
	case err = <-answered:
	case <-time.After(30 * time.Second):
		err = fmt.Errorf("not ready after 30 s")
	}
	if err != nil {
		d.stop()
		d.t.Fatalf("varve serve: %v\n%s", err, d.logged())
	}
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
	late := time.AfterFunc(30*time.Second, func() {
		d.t.Errorf("the daemon did not stop within 30 s")
		d.cmd.Process.Kill()
	})
	err := d.cmd.Wait()
	late.Stop()
	if err != nil {
		d.t.Errorf("the daemon ended with %v", err)
	}
	d.cmd = nil
	d.log.Close()
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd.Wait() // It was killed: the error says so.
	d.cmd = nil
	d.log.Close()
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
	b, err := os.ReadFile(d.state + ".log")
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
	cmd := exec.CommandContext(ctx, program, args...)
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
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out, errout bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errout
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errout.String())
	}
	return out.String()
}

// await returns when what is so; it looks often, and fails the test after
// 30 s.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	late := time.After(30 * time.Second)
	for !is() {
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("after 30 s it is still not so: %s", what)
		}
	}
}
