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
	name    string
	begin   func(round int) []string                     // the command
	repeat  int                                          // so often, one after the other; 0: once
	setUp   func(*besideRun, context.Context) error      // once; nil: nothing
	prepare func(*besideRun, context.Context, int) error // before each round; nil: nothing
	tidy    func(round int) []string                     // what puts things back; nil: nothing
}

var besideJobs = map[string]besideJob{
	"backup": {
		name: "a full backup",
		begin: func(round int) []string {
			return []string{"backup", "create", exportName, "--force", "--name", roundName(round)}
		},
	},
	"restore": {
		name:  "a restore",
		setUp: (*besideRun).keep,
		begin: func(round int) []string { return []string{"backup", "restore", keptBackup, "--name", roundName(round)} },
		tidy:  func(round int) []string { return []string{"volume", "delete", roundName(round)} },
	},
	"verify": {
		name:  "a deep verification",
		setUp: (*besideRun).keep,
		begin: func(int) []string { return []string{"target", "verify", targetName, "--mode", "deep"} },
	},
	"prune": {
		name:    "pruning that merges small packs",
		setUp:   (*besideRun).makeLittered,
		prepare: (*besideRun).litter,
		begin: func(int) []string {
			return []string{"target", "prune", targetName, "--grace", "1ms", "--repack-below", "100"}
		},
	},
	"repair": {
		name:   "a check with repair",
		setUp:  (*besideRun).seal,
		begin:  func(int) []string { return []string{"volume", "check", exportName, "--repair"} },
		repeat: 5, // It reads nothing but the page cache.
	},
}

const (
	keptBackup = "kept"
	littered   = "littered" // a volume whose backups go
)

func roundName(round int) string { return fmt.Sprintf("round%d", round) }

// besideLimit is how long a guest is measured beside one operation; the rest of
// that goes on alone.
const besideLimit = 20 * time.Second

// A besideRun is one besideJob under way: a daemon, a volume with a guest, and a
// target on the same disk, which is the worst case.
type besideRun struct {
	besideJob
	*bench
	*daemon
	guest *conn
}

// beside makes the job of a name, with a folder for a target, or with a bucket of
// an S3 server on this machine.
func beside(name string, overS3 bool) func(context.Context, *bench, *daemon) error {
	return func(ctx context.Context, b *bench, d *daemon) (err error) {
		r := &besideRun{besideJob: besideJobs[name], bench: b, daemon: d}
		buckets := filepath.Join(b.disk, "engine", "targets")
		if err := os.MkdirAll(buckets, 0o700); err != nil {
			return err
		}
		url, env := "file://"+filepath.Join(buckets, targetName), []string(nil)
		if overS3 {
			if !b.has("varve", []string{gateway}) {
				return nil
			}
			s, address, err := startGateway(ctx, b, filepath.Join(b.disk, "engine", "s3"), buckets)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.stop()) }()
			url, env = "s3://"+targetName+"?endpoint=http://"+address, gatewayEnv
			r.name += " on local S3"
		}
		if r.guest, err = d.create(ctx, exportName, b.volume); err != nil {
			return err
		}
		defer r.guest.Close()
		if err := overwrite(ctx, r.guest, base(int64(b.volume))); err != nil {
			return err
		}
		if _, err := (task{env: append(d.env(), env...)}).run(ctx, d.binary, "target", "add", targetName, url); err != nil {
			return err
		}
		if r.setUp != nil {
			if err := r.setUp(r, ctx); err != nil {
				return err
			}
		}
		return r.rounds(ctx)
	}
}

// rounds compares what the guest gets done beside the operation with what it gets
// done before and after.
func (r *besideRun) rounds(ctx context.Context) error {
	var shares []float64
	for round := range 1 + r.roundsOr(2, 3) {
		share, wall, err := r.measure(ctx, round)
		if err != nil {
			return err
		}
		r.say("beside %s: %.2f, it took %.1f s", r.name, share, wall.Seconds())
		if round > 0 { // the first fills caches
			shares = append(shares, share)
		}
	}
	r.figure(engineFigure{"4k randwrite qd16, flush every 32, beside " + r.name + " : alone", median(shares), "times", 0.8, true})
	return nil
}

// keep makes a backup to work with.
func (r *besideRun) keep(ctx context.Context) error {
	_, err := r.run(ctx, "backup", "create", exportName, "--force", "--name", keptBackup)
	return err
}

// seal makes a snapshot, of which there are checksums.
func (r *besideRun) seal(ctx context.Context) error {
	_, err := r.snapshot(ctx, exportName, keptBackup)
	return err
}

func (r *besideRun) makeLittered(ctx context.Context) error {
	c, err := r.create(ctx, littered, littersSize)
	if err != nil {
		return err
	}
	return c.Close()
}

// A round of litter leaves that many small packs in the target, which pruning puts
// together, and one backup's whole ones, which go.
const (
	litters     = 48
	litterSize  = 4 << 20
	littersSize = litters * litterSize
)

func (r *besideRun) litter(ctx context.Context, round int) error {
	c, err := dial(r.socket(), littered, dialOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	runs := base(littersSize)
	for i := range runs {
		runs[i].seed += uint64(round+1) << 32
	}
	one := func(name string, runs []run, more ...string) error {
		if err := overwrite(ctx, c, runs); err != nil {
			return err
		}
		_, err := r.run(ctx, append([]string{"backup", "create", littered, "--force", "--name", roundName(round) + name}, more...)...)
		return err
	}
	if err := errors.Join(one("gone", runs), one("full", nil)); err != nil {
		return err
	}
	for i := range litters {
		part := runs[i*len(runs)/litters : (i+1)*len(runs)/litters]
		for j := range part {
			part[j].seed += 1 << 40
		}
		if err := one(fmt.Sprint("part", i), part, "--incremental"); err != nil {
			return err
		}
	}
	_, err = r.run(ctx, "backup", "delete", roundName(round)+"gone")
	return err
}

// measure measures before, during and after one operation. wall is how long that
// took.
func (r *besideRun) measure(ctx context.Context, round int) (share float64, wall time.Duration, err error) {
	if r.prepare != nil {
		if err := r.prepare(r, ctx, round); err != nil {
			return 0, 0, err
		}
	}
	guest := func(seconds time.Duration) (float64, error) {
		l, err := load{write: true, block: blockSize, depth: 16, flushEvery: 32, duration: seconds * time.Second, seed: uint64(round)}.run(r.guest)
		if err != nil {
			return 0, err
		}
		return float64(l.ops) / l.elapsed.Seconds(), nil
	}
	before, err := guest(5)
	if err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		var err error
		for n := 0; n < max(r.repeat, 1) && err == nil; n++ {
			_, err = r.run(ctx, r.begin(round)...)
		}
		wall = time.Since(began)
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
			return 0, 0, guestErr
		}
	}
	if running {
		err = <-ended
	}
	if err == nil && r.tidy != nil {
		_, err = r.run(ctx, r.tidy(round)...)
	}
	if err != nil {
		return 0, 0, err
	}
	if len(beside) == 0 {
		return 0, 0, errors.New("it was over within a second: measure with a larger volume")
	}
	after, err := guest(5)
	return mean(beside) / mean([]float64{before, after}), wall, err
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
