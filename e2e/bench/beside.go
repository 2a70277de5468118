package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A besideJob is an operation that is to make way for guests.
type besideJob struct {
	name   string
	begin  func(round int) []string // the command
	tidy   func(round int) []string // what puts things back; nil: nothing
	backup bool                     // it needs one that was made before
}

var besideBackup = besideJob{
	name: "a full backup",
	begin: func(round int) []string {
		return []string{"backup", "create", exportName, "--force", "--name", roundName(round)}
	},
}

var besideRestore = besideJob{
	name:   "a restore",
	begin:  func(round int) []string { return []string{"backup", "restore", keptBackup, "--name", roundName(round)} },
	tidy:   func(round int) []string { return []string{"volume", "delete", roundName(round)} },
	backup: true,
}

var besideVerify = besideJob{
	name:   "a deep verification",
	begin:  func(int) []string { return []string{"target", "verify", targetName, "--mode", "deep"} },
	backup: true,
}

const keptBackup = "kept"

func roundName(round int) string { return fmt.Sprintf("round%d", round) }

// besideLimit is how long a guest is measured beside one operation; the rest of
// that goes on alone.
const besideLimit = 20 * time.Second

// run compares what a guest gets done beside the operation with what it gets done
// before and after. The target is a folder on the same disk, which is the worst
// case.
func (j besideJob) run(ctx context.Context, b *bench, d *daemon) error {
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
	if j.backup {
		if _, err := d.run(ctx, "backup", "create", exportName, "--force", "--name", keptBackup); err != nil {
			return err
		}
	}
	var shares []float64
	for round := range 1 + b.roundsOr(2, 3) {
		share, err := j.measure(ctx, d, c, round)
		if err != nil {
			return err
		}
		if round > 0 { // the first fills caches
			shares = append(shares, share)
		}
	}
	b.figure(engineFigure{"4k randwrite qd16, flush every 32, beside " + j.name + " : alone", median(shares), "times", 0.8, true})
	return nil
}

// measure measures before, during and after one operation.
func (j besideJob) measure(ctx context.Context, d *daemon, c *conn, round int) (float64, error) {
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
	began := time.Now()
	go func() {
		_, err := d.run(ctx, j.begin(round)...)
		ended <- err
	}()
	var beside []float64
	running := true
	for running && time.Since(began) < besideLimit {
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
	if running {
		err = <-ended
	}
	if err == nil && j.tidy != nil {
		_, err = d.run(ctx, j.tidy(round)...)
	}
	if err != nil {
		return 0, err
	}
	if len(beside) == 0 {
		return 0, errors.New("it was over within a second: measure with a larger volume")
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
