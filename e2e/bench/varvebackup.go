package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// A varveRepository is a volume that holds the image, in a daemon of its own,
// and a directory as its target. The image reaches the volume through NBD; the
// time of a backup is that of `varve backup create`.
type varveRepository struct {
	places
	*daemon
}

const (
	targetName   = "target"
	restoredName = "restored"
)

// openVarveRepository makes a target with this compression.
func openVarveRepository(compression string) func(context.Context, *bench, places) (repository, error) {
	return func(ctx context.Context, b *bench, p places) (repository, error) {
		return newVarveRepository(ctx, b, p, task{}, "file://"+p.repo, "--compression", compression)
	}
}

func openVarveOnS3(ctx context.Context, b *bench, p places, s3 *countedS3) (repository, error) {
	return newVarveRepository(ctx, b, p, task{env: gatewayEnv}, "s3://"+s3.bucket+"?region=us-east-1&endpoint="+s3.url)
}

// newVarveRepository adds the target at url as login does.
func newVarveRepository(ctx context.Context, b *bench, p places, login task, url string, options ...string) (repository, error) {
	d, err := startDaemon(ctx, b, p.home)
	if err != nil {
		return nil, err
	}
	r := &varveRepository{places: p, daemon: d}
	login.env = append(d.env(), login.env...)
	_, err = login.run(ctx, d.binary, append([]string{"target", "add", targetName, url}, options...)...)
	if err == nil {
		_, err = d.run(ctx, "volume", "create", exportName, "--size", b.image.String())
	}
	if err == nil {
		_, err = task{}.run(ctx, "nbdcopy", "--flush", "--destination-is-zero", p.image, "nbd+unix:///"+exportName+"?socket="+d.socket())
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *varveRepository) prepare(context.Context) error { return nil }
func (r *varveRepository) close() error                  { return r.server.stop() }

func (r *varveRepository) change(ctx context.Context, runs []run) error {
	c, err := dial(r.socket(), exportName, dialOptions{})
	if err != nil {
		return err
	}
	return errors.Join(overwrite(ctx, c, runs), c.Flush(), c.Close())
}

func backupName(n int) string { return fmt.Sprintf("b%d", n) }

func (r *varveRepository) backup(ctx context.Context, n int) (cost, error) {
	args := []string{"backup", "create", exportName, "--target", targetName, "--name", backupName(n), "--wait"}
	if n > 0 {
		args = append(args, "--incremental")
	}
	return r.charge(ctx, args...)
}

func (r *varveRepository) restore(ctx context.Context, n int) (cost, error) {
	return r.charge(ctx, "backup", "restore", backupName(n-1), "--name", restoredName, "--wait")
}

func (r *varveRepository) compare(ctx context.Context, image *os.File) error {
	c, err := dial(r.socket(), restoredName, dialOptions{})
	if err != nil {
		return err
	}
	info, err := image.Stat()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	if c.size != info.Size() {
		return errors.Join(fmt.Errorf("the restored volume is %d bytes long, the image %d", c.size, info.Size()), c.Close())
	}
	return errors.Join(equal(ctx, c, image, c.size), c.Close())
}
