package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A daemon is a running `varve serve` with a state folder of its own.
type daemon struct {
	binary string
	state  string
	server *server
}

// passphrase opens the repositories of this run, which last as long as it does.
const passphrase = "bench"

func startDaemon(ctx context.Context, b *bench, dir string) (*daemon, error) {
	binary, err := filepath.Abs(b.varve)
	if err != nil {
		return nil, err
	}
	d := &daemon{binary: binary, state: filepath.Join(dir, "state")}
	if err := os.MkdirAll(d.state, 0o700); err != nil {
		return nil, err
	}
	d.server, err = startServer(ctx, d.socket(), d.env(), binary, "serve", "--state", d.state)
	return d, err
}

func (d *daemon) socket() string { return filepath.Join(d.state, "nbd.sock") }

func (d *daemon) env() []string {
	return []string{"VARVE_STATE=" + d.state, "VARVE_PASSPHRASE=" + passphrase}
}

// run runs one command of the CLI against the daemon.
func (d *daemon) run(ctx context.Context, args ...string) (cost, error) {
	return task{env: d.env()}.run(ctx, d.binary, args...)
}

// charge runs a command and adds to its cost what the daemon spent meanwhile;
// the peak is the daemon's alone.
func (d *daemon) charge(ctx context.Context, args ...string) (cost, error) {
	pid := d.server.pid()
	if err := resetPeakRSS(pid); err != nil {
		return cost{}, err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return cost{}, err
	}
	c, err := d.run(ctx, args...)
	if err != nil {
		return cost{}, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return cost{}, err
	}
	c.CPU += after - before
	c.PeakRSS, err = peakRSS(pid)
	return c, err
}

// A varveExport is a volume of a daemon that has no other.
type varveExport struct {
	*daemon
	snapshots int
}

func openVarve(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
	d, err := startDaemon(ctx, b, dir)
	if err != nil {
		return nil, err
	}
	e := &varveExport{daemon: d}
	if _, err := d.run(ctx, "volume", "create", exportName, "--size", size.String()); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (e *varveExport) address() (string, string) { return e.socket(), exportName }
func (e *varveExport) process() *server          { return e.server }
func (e *varveExport) certificates() string      { return "" }
func (e *varveExport) close() error              { return e.server.stop() }

func (e *varveExport) push(ctx context.Context) error {
	e.snapshots++
	_, err := e.run(ctx, "snapshot", "create", exportName, "--name", fmt.Sprintf("s%d", e.snapshots))
	return err
}

// fresh takes one more snapshot: the chain grows by one with every job that
// writes, while qcow2's stays as it is.
func (e *varveExport) fresh(ctx context.Context) error {
	if e.snapshots == 0 {
		return nil
	}
	return e.push(ctx)
}
