package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// An engineFigure is what a volume does that no peer does beside it, with the
// bar that it has to keep.
type engineFigure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Bar   float64 `json:"bar"`   // 0 is none
	Least bool    `json:"least"` // Value is to be at least Bar; otherwise at most
}

// verdict shows the bar and whether it is kept.
func (f engineFigure) verdict() string {
	kept, word := f.Value <= f.Bar, "at most"
	if f.Least {
		kept, word = f.Value >= f.Bar, "at least"
	}
	switch {
	case f.Bar == 0:
		return ""
	case kept:
		return fmt.Sprintf("%s %g reached", word, f.Bar)
	}
	return fmt.Sprintf("**%s %g missed**", word, f.Bar)
}

// engineJobList is what is measured of volumes alone. Each job has a daemon of
// its own.
var engineJobList = []struct {
	name string
	run  func(context.Context, *bench, *daemon) error
}{
	{"snapshots", manySnapshots},
	{"snapshot create", snapshotUnderLoad},
	{"snapshot delete", deleteHidden},
	{"open", openLarge},
	{"backup", beside("backup", false)},
	{"restore", beside("restore", false)},
	{"verify", beside("verify", false)},
	{"prune", beside("prune", false)},
	{"repair", beside("repair", false)},
	{"backup s3", beside("backup", true)},
	{"restore s3", beside("restore", true)},
	{"verify s3", beside("verify", true)},
	{"prune s3", beside("prune", true)},
	{"limits", keepsLimits},
}

// engineJobs runs the jobs on volumes alone.
func (b *bench) engineJobs(ctx context.Context) error {
	for _, job := range engineJobList {
		if !wants(b.only, "engine/"+job.name) || !b.has("varve", []string{underTest, "fio"}) {
			continue
		}
		b.say("engine %s", job.name)
		dir := filepath.Join(b.disk, "engine")
		d, err := startDaemon(ctx, b, dir)
		if err == nil {
			err = errors.Join(job.run(ctx, b, d), d.server.stop())
		}
		err = errors.Join(err, os.RemoveAll(dir))
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			b.fail("engine/"+job.name, "varve", 0, err)
		}
	}
	return nil
}

func (b *bench) figure(f engineFigure) {
	b.Engine = append(b.Engine, f)
	b.say("engine %s: %.3f %s", f.Name, f.Value, f.Unit)
}

// create makes a volume and connects to it.
func (d *daemon) create(ctx context.Context, name string, size byteSize) (*conn, error) {
	if _, err := d.run(ctx, "volume", "create", name, "--size", size.String()); err != nil {
		return nil, err
	}
	return dial(d.socket(), name, dialOptions{})
}

func (d *daemon) snapshot(ctx context.Context, volume, name string) (cost, error) {
	return d.run(ctx, "snapshot", "create", volume, "--name", name)
}

// manySnapshots compares volumes that differ in how many snapshots they have. In
// each of those some blocks were overwritten.
func manySnapshots(ctx context.Context, b *bench, d *daemon) error {
	const size = 256 << 20
	counts := []int{0, 1, 10, 100, 1000}
	name := func(n int) string { return fmt.Sprintf("with%d", n) }
	random := rand.New(rand.NewPCG(1, 4))
	block := make([]byte, blockSize)
	for _, n := range counts {
		c, err := d.create(ctx, name(n), size)
		if err != nil {
			return err
		}
		err = overwrite(ctx, c, base(size))
		for i := 0; i < n && err == nil; i++ {
			for range 16 {
				fillRandom(block, random.Uint64())
				if _, err = c.WriteAt(block, random.Int64N(size/blockSize)*blockSize); err != nil {
					break
				}
			}
			if err == nil {
				_, err = d.snapshot(ctx, name(n), strconv.Itoa(i))
			}
		}
		if err = errors.Join(err, c.Flush(), c.Close()); err != nil {
			return err
		}
	}
	for _, rw := range []string{"randread", "randwrite"} {
		job := nbdJob{rw: rw, block: blockSize, depth: 16}
		ratios := map[int][]float64{}
		for round := range 1 + b.roundsOr(3, 5) {
			var alone float64
			for _, n := range counts {
				m, _, err := b.fio(ctx, b.seconds, job, "nbd+unix:///"+name(n)+"?socket="+d.socket(), uint64(round))
				if err != nil {
					return err
				}
				if n == 0 {
					alone = m[iops]
				} else if round > 0 { // the first fills caches, and the newest layer
					ratios[n] = append(ratios[n], m[iops]/alone)
				}
			}
		}
		for _, n := range counts[1:] {
			b.figure(engineFigure{fmt.Sprintf("4k %s qd16, %d snapshots : none", rw, n), median(ratios[n]), "times", 0.95, true})
		}
	}
	return nil
}

// snapshotUnderLoad takes snapshots while 64 writes are in flight all the time.
func snapshotUnderLoad(ctx context.Context, b *bench, d *daemon) error {
	c, err := d.create(ctx, exportName, b.volume)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := overwrite(ctx, c, base(int64(b.volume))); err != nil {
		return err
	}
	const snapshots = 30
	written := make(chan error, 1)
	var seen *loadResult
	go func() {
		var err error
		seen, err = load{write: true, block: blockSize, depth: 64, flushEvery: 256, duration: 10 * time.Second, seed: 9}.run(c)
		written <- err
	}()
	var took []float64
	for i := range snapshots {
		cost, err := d.snapshot(ctx, exportName, strconv.Itoa(i))
		if err != nil {
			return errors.Join(err, <-written)
		}
		took = append(took, cost.Wall.Seconds()*1000)
	}
	if err := <-written; err != nil {
		return err
	}
	b.figure(engineFigure{"snapshot create with 64 writers, the command's median", median(took), "ms", 50, false})
	b.figure(engineFigure{"slowest write beside it", micros(seen.latency.quantile(1)) / 1000, "ms", 0, false})
	return nil
}

// deleteHidden deletes a snapshot all of whose blocks were overwritten since.
func deleteHidden(ctx context.Context, b *bench, d *daemon) error {
	size := byteSize(10 << 30)
	if b.quick {
		size = b.volume
	}
	c, err := d.create(ctx, exportName, size)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range 2 {
		if err := overwrite(ctx, c, base(int64(size))); err != nil {
			return err
		}
		if _, err := d.snapshot(ctx, exportName, strconv.Itoa(i)); err != nil {
			return err
		}
	}
	began := time.Now()
	cost, err := d.run(ctx, "snapshot", "delete", "0")
	if err != nil {
		return err
	}
	for {
		var out bytes.Buffer
		if _, err := (task{env: d.env(), stdout: &out}).run(ctx, d.binary, "volume", "show", exportName, "--long", "-o", "value", "-c", "actual_size"); err != nil {
			return err
		}
		used, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
		if err != nil {
			return err
		}
		if used <= int64(size) {
			break
		}
		if time.Since(began) > 5*time.Minute {
			return fmt.Errorf("%d bytes are still taken by a volume of %d after 5 minutes", used, size)
		}
	}
	b.figure(engineFigure{fmt.Sprintf("delete of a snapshot of %s, all hidden, the command", size), cost.Wall.Seconds(), "s", 1, false})
	b.figure(engineFigure{"until its space is back", time.Since(began).Seconds(), "s", 0, false})
	return nil
}

// openLarge starts a daemon with a volume of 1 TiB whose blocks are spread so
// that every part of the map has some.
func openLarge(ctx context.Context, b *bench, d *daemon) error {
	const size, stride = 1 << 40, 16 << 20
	c, err := d.create(ctx, exportName, size)
	if err != nil {
		return err
	}
	block := make([]byte, blockSize)
	fillRandom(block, 1)
	for off := int64(0); off < size && err == nil; off += stride {
		_, err = c.WriteAt(block, off)
	}
	if err = errors.Join(err, c.Close(), d.server.stop()); err != nil {
		return err
	}
	began := time.Now()
	d.server, err = startServer(ctx, d.socket(), d.env(), d.binary, "serve", "--state", d.state)
	if err != nil {
		return err
	}
	b.figure(engineFigure{"start of a daemon with a volume of 1 TiB, a block in each 16 MiB", time.Since(began).Seconds(), "s", 2, false})
	return nil
}

// reportEngine prints what was measured of volumes alone.
func (b *bench) reportEngine(w io.Writer) {
	if len(b.Engine) == 0 {
		return
	}
	t := table{heads: []string{"volumes alone", "figure", "bar"}}
	for _, f := range b.Engine {
		t.add(f.Name, fmt.Sprintf("%.3g %s", f.Value, f.Unit), f.verdict())
	}
	fmt.Fprint(w, "\n### Engine\n\n")
	t.write(w)
}
