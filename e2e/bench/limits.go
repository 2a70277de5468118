package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// keepsLimits measures how close to the limits of a target operations get, with a
// real S3 server on this machine.
func keepsLimits(ctx context.Context, b *bench, d *daemon) (err error) {
	if !b.has("varve", []string{gateway}) {
		return nil
	}
	const size, limit = 256 << 20, 32 << 20 // bytes; bytes a second
	buckets := filepath.Join(b.disk, "engine", "targets")
	if err := os.MkdirAll(buckets, 0o700); err != nil {
		return err
	}
	s, address, err := startGateway(ctx, b, filepath.Join(b.disk, "engine", "s3"), buckets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	c, err := d.create(ctx, exportName, size)
	if err != nil {
		return err
	}
	if err := errors.Join(overwrite(ctx, c, base(size)), c.Close()); err != nil {
		return err
	}
	add := task{env: append(d.env(), gatewayEnv...)}
	if _, err := add.run(ctx, d.binary, "target", "add", targetName, "s3://"+targetName+"?endpoint=http://"+address); err != nil {
		return err
	}
	for _, j := range []struct {
		name, flag string
		command    []string
	}{
		{"a full backup, of its limit up", "--max-upload", []string{"backup", "create", exportName}},
		{"a deep verification, of its limit down", "--max-download", []string{"target", "verify", targetName, "--mode", "deep"}},
	} {
		if _, err := d.run(ctx, "target", "set", targetName, "--max-upload", "none", "--max-download", "none"); err != nil {
			return err
		}
		if _, err := d.run(ctx, "target", "set", targetName, j.flag, fmt.Sprint(limit)); err != nil {
			return err
		}
		cost, err := d.run(ctx, j.command...)
		if err != nil {
			return err
		}
		b.figure(engineFigure{j.name + ", 32 MiB/s", size / cost.Wall.Seconds() / limit, "times", 0.9, true})
	}
	return nil
}
