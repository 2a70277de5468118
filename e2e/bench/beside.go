package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// besideBackup compares what a guest gets done beside a full backup of its volume
// with what it gets done before and after. The target is a folder on the same
// disk, which is the worst case.
func besideBackup(ctx context.Context, b *bench, d *daemon) error {
	c, err := d.create(ctx, exportName, b.volume)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := overwrite(ctx, c, base(int64(b.volume))); err != nil {
		return err
	}
	repo := filepath.Join(b.disk, "engine", "target")
	if err := os.Mkdir(repo, 0o700); err != nil {
		return err
	}
	if _, err := d.run(ctx, "target", "add", targetName, "file://"+repo); err != nil {
		return err
	}
	var shares []float64
	for round := range b.roundsOr(3, 3) {
		share, err := b.besideOne(ctx, d, c, round)
		if err != nil {
			return err
		}
		if round > 0 { // the first fills caches
			shares = append(shares, share)
		}
	}
	b.figure(engineFigure{"4k randwrite qd16, flush every 32, beside a full backup : alone", median(shares), "times", 0.8, true})
	return nil
}

// besideOne measures before, during and after one backup.
func (b *bench) besideOne(ctx context.Context, d *daemon, c *conn, round int) (float64, error) {
	guest := func(seconds time.Duration) (float64, error) {
		r, err := load{write: true, block: blockSize, depth: 16, flushEvery: 32, duration: seconds * time.Second, seed: uint64(round)}.run(c)
		if err != nil {
			return 0, err
		}
		return float64(r.ops) / r.elapsed.Seconds(), nil
	}
	before, err := guest(5)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := d.run(ctx, "backup", "create", exportName, "--force", "--name", "beside"+strconv.Itoa(round))
		ended <- err
	}()
	var beside []float64
	for running := true; running; {
		now, guestErr := guest(1)
		select {
		case err = <-ended:
			running = false
		default:
			beside = append(beside, now)
		}
		if guestErr != nil {
			return 0, guestErr
		}
	}
	if err != nil {
		return 0, err
	}
	if len(beside) == 0 {
		return 0, errors.New("the backup was over within a second: measure with a larger volume")
	}
	after, err := guest(5)
	return mean(beside) / mean([]float64{before, after}), err
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
