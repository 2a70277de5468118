package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A clientKind is the program that makes the requests of an NBD job.
type clientKind int

const (
	useFio     clientKind = iota // fio's nbd engine
	useBatch                     // our own batching load, load.go
	useCopyOut                   // nbdcopy to nowhere
	useCopyIn                    // nbdcopy from a raw file
)

// An nbdJob is one pattern of requests.
type nbdJob struct {
	name       string
	client     clientKind
	rw         string // fio's name of the pattern; a batching load knows randread and randwrite
	block      int    // bytes of a request
	depth      int    // requests in flight on each connection
	conns      int    // connections; 0 is one
	flushEvery int    // requests between flushes; 0 is none
	structured bool   // of a batching load: whether it asks for structured replies
	writes     bool   // begins on an empty top layer where the peer has layers
	fullOnly   bool   // left out of -quick
	unit       metric // the figure to look at
	bars       []bar
}

// versus are the bars of an NBD job: the first version's against qcow2 with
// and without layers, and the goals against qcow2 with ten and against nbdkit.
func versus(unit metric, qcow2Goal, nbdkitGoal float64) []bar {
	return []bar{
		{metric: unit, ours: "varve", peer: "qcow2", first: 1.3},
		{metric: unit, ours: "varve+10", peer: "qcow2+10", first: 1.3, goal: qcow2Goal},
		{metric: unit, ours: "varve+10", peer: "nbdkit", goal: nbdkitGoal},
	}
}

// nbdJobList is in an order that keeps the volumes warm and alike: all that
// reads comes before anything that writes.
var nbdJobList = []nbdJob{
	{name: "4k randread qd1", rw: "randread", block: 4 << 10, depth: 1, unit: iops, bars: versus(iops, 2.0, 1.0)},
	{name: "4k randread qd16", rw: "randread", block: 4 << 10, depth: 16, unit: iops, bars: versus(iops, 2.3, 1.0)},
	{name: "4k randread qd64", rw: "randread", block: 4 << 10, depth: 64, unit: iops, bars: versus(iops, 2.5, 1.2)},
	{name: "4k randread 4 conn", rw: "randread", block: 4 << 10, depth: 16, conns: 4, fullOnly: true, unit: iops, bars: versus(iops, 3, 0.9)},
	{name: "1m read qd4", rw: "read", block: 1 << 20, depth: 4, unit: mibPerSecond, bars: versus(mibPerSecond, 1.7, 0.95)},
	{name: "nbdcopy out", client: useCopyOut, unit: mibPerSecond, bars: versus(mibPerSecond, 1.5, 0.95)},
	{name: "batch 4k randread qd16", client: useBatch, rw: "randread", block: 4 << 10, depth: 16, unit: iops},
	{name: "batch 4k randread qd64", client: useBatch, rw: "randread", block: 4 << 10, depth: 64, unit: iops, bars: versus(iops, 5, 2)},
	{name: "batch 4k randread qd64 structured", client: useBatch, rw: "randread", block: 4 << 10, depth: 64, structured: true, fullOnly: true, unit: iops},

	{name: "4k randwrite qd1", rw: "randwrite", block: 4 << 10, depth: 1, writes: true, unit: iops, bars: versus(iops, 1.5, 1.2)},
	{name: "4k randwrite qd16", rw: "randwrite", block: 4 << 10, depth: 16, writes: true, unit: iops, bars: versus(iops, 1.5, 1.3)},
	{name: "4k randwrite qd64", rw: "randwrite", block: 4 << 10, depth: 64, writes: true, unit: iops, bars: versus(iops, 1.5, 1.3)},
	{name: "4k randwrite qd16 flush/32", rw: "randwrite", block: 4 << 10, depth: 16, flushEvery: 32, writes: true, unit: iops,
		bars: append(versus(iops, 1.6, 1.8),
			bar{metric: flushP50, ours: "varve+10", peer: "qcow2+10", goal: 1 / 0.35},
			bar{metric: flushP50, ours: "varve+10", peer: "nbdkit", goal: 1 / 0.35})},
	{name: "4k randwrite 4 conn", rw: "randwrite", block: 4 << 10, depth: 16, conns: 4, writes: true, fullOnly: true, unit: iops, bars: versus(iops, 1.5, 1.8)},
	{name: "batch 4k randwrite qd16", client: useBatch, rw: "randwrite", block: 4 << 10, depth: 16, writes: true, unit: iops},
	{name: "batch 4k randwrite qd64", client: useBatch, rw: "randwrite", block: 4 << 10, depth: 64, writes: true, unit: iops},
	{name: "batch 4k randwrite qd32 flush/32", client: useBatch, rw: "randwrite", block: 4 << 10, depth: 32, flushEvery: 32, writes: true, unit: iops,
		bars: versus(iops, 1.6, 1.8)},
	{name: "1m write qd4", rw: "write", block: 1 << 20, depth: 4, writes: true, unit: mibPerSecond, bars: versus(mibPerSecond, 1.3, 0.9)},
	{name: "nbdcopy in", client: useCopyIn, writes: true, unit: mibPerSecond, bars: versus(mibPerSecond, 1.2, 0.9)},
}

// An nbdStand is a peer that is up and filled.
type nbdStand struct {
	nbdPeer
	export
}

// nbdJobs runs the jobs on NBD exports.
func (b *bench) nbdJobs(ctx context.Context) (err error) {
	var jobs []nbdJob
	for _, job := range nbdJobList {
		if wants(b.only, "nbd/"+job.name) && !(b.quick && job.fullOnly) {
			jobs = append(jobs, job)
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	dir := filepath.Join(b.disk, "nbd")
	defer func() {
		b.say("remove the volumes") // layers of small random writes take the file system a while
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	stands, err := b.openNBD(ctx, dir)
	defer func() {
		for _, s := range stands {
			if cerr := s.close(); cerr != nil {
				b.fail("end", s.name, 0, cerr)
			}
		}
	}()
	if err != nil {
		return err
	}
	for _, job := range jobs {
		b.addJob(job.name, job.unit, job.bars)
		for round := range b.roundsOr(2, 3) {
			for _, s := range stands {
				if err := b.nbdRound(ctx, job, s, round); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// openNBD starts and fills every peer that the machine has. On error it still
// returns what is to be closed.
func (b *bench) openNBD(ctx context.Context, dir string) (stands []nbdStand, err error) {
	var first string // digest of the first peer
	for _, p := range nbdPeers {
		if !wants(b.peers, p.name) || !b.has(p.name, p.needs) {
			continue
		}
		b.say("fill %s", p.name)
		home := filepath.Join(dir, p.name)
		if err := os.MkdirAll(home, 0o700); err != nil {
			return stands, err
		}
		e, err := p.open(ctx, b, home)
		if err != nil {
			b.fail("start", p.name, 0, err)
			continue
		}
		s := nbdStand{p, e}
		sum, err := s.fill(ctx)
		if err == nil && first != "" && sum != first {
			err = errors.New("the volume does not read back as the other peers' volumes do")
		}
		if err != nil {
			b.fail("fill", p.name, 0, errors.Join(err, e.close()))
			continue
		}
		first = sum
		stands = append(stands, s)
	}
	return stands, ctx.Err()
}

// fill writes the content that all peers share, with the peer's layers between
// its parts, and returns the digest of what then reads back.
func (s nbdStand) fill(ctx context.Context) (string, error) {
	var sum string
	err := s.with(func(c *conn) error { return errors.Join(overwrite(ctx, c, base(c.size)), c.Flush()) })
	for layer := 1; layer <= 10 && err == nil; layer++ {
		if layer <= s.layers {
			err = s.push(ctx)
		}
		if err == nil {
			err = s.with(func(c *conn) error { return errors.Join(overwrite(ctx, c, overlay(c.size, layer)), c.Flush()) })
		}
	}
	if err != nil {
		return "", err
	}
	err = s.with(func(c *conn) (err error) {
		sum, err = digest(ctx, c)
		return err
	})
	return sum, err
}

// with opens a connection for the time of do.
func (s nbdStand) with(do func(*conn) error) error {
	socket, name := s.address()
	c, err := dial(socket, name, false)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// nbdRound measures one job on one peer once. A peer that fails is noted; the
// error is of the run as a whole.
func (b *bench) nbdRound(ctx context.Context, job nbdJob, s nbdStand, round int) error {
	before := loadAverage()
	m, err := b.measureNBD(ctx, job, s, round)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		b.fail(job.name, s.name, round, err)
		b.say("%-32s %-9s round %d FAILED: %v", job.name, s.name, round+1, err)
		return nil
	}
	b.addSample(sample{Job: job.name, Peer: s.name, Round: round, Load: before, Metrics: m})
	b.say("%-32s %-9s round %d  %s", job.name, s.name, round+1, job.unit.format(m[job.unit]))
	return nil
}

func (b *bench) measureNBD(ctx context.Context, job nbdJob, s nbdStand, round int) (metrics, error) {
	if job.writes {
		if err := s.fresh(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.process().running(); err != nil {
		return nil, err
	}
	if err := b.settle(ctx, s.process().pid()); err != nil {
		return nil, err
	}
	before, err := cpuTime(s.process().pid())
	if err != nil {
		return nil, err
	}
	m, ops, err := b.client(ctx, job, s, uint64(round))
	if err != nil {
		return nil, err
	}
	after, err := cpuTime(s.process().pid())
	if err != nil {
		return nil, err
	}
	m[cpuSeconds] = (after - before).Seconds()
	m[cpuPerOp] = micros(after-before) / float64(max(ops, 1))
	return m, nil
}

// client runs the job's requests and says how many there were.
func (b *bench) client(ctx context.Context, job nbdJob, s nbdStand, seed uint64) (metrics, int64, error) {
	switch job.client {
	case useBatch:
		return b.batch(ctx, job, s, seed)
	case useCopyOut:
		return b.copy(ctx, uri(s), "null:")
	case useCopyIn:
		source := filepath.Join(b.disk, "source.raw")
		if err := b.copySource(ctx, source); err != nil {
			return nil, 0, err
		}
		return b.copy(ctx, source, uri(s))
	}
	return b.fio(ctx, job, uri(s), seed)
}

// batch runs our own load, bypassing contexts: it lasts seconds.
func (b *bench) batch(ctx context.Context, job nbdJob, s nbdStand, seed uint64) (metrics, int64, error) {
	socket, name := s.address()
	c, err := dial(socket, name, job.structured)
	if err != nil {
		return nil, 0, err
	}
	r, err := load{write: job.writes, block: job.block, depth: job.depth, flushEvery: job.flushEvery, seed: seed,
		duration: time.Duration(b.seconds * float64(time.Second))}.run(c)
	if err := errors.Join(err, c.Close(), ctx.Err()); err != nil {
		return nil, 0, err
	}
	m := metrics{
		iops:         float64(r.ops) / r.elapsed.Seconds(),
		mibPerSecond: float64(r.ops) * float64(job.block) / (1 << 20) / r.elapsed.Seconds(),
		p50:          micros(r.latency.quantile(0.5)),
		p99:          micros(r.latency.quantile(0.99)),
	}
	if r.flushes > 0 {
		m[flushP50], m[flushP99] = micros(r.flush.quantile(0.5)), micros(r.flush.quantile(0.99))
	}
	return m, r.ops + r.flushes, nil
}

// copyRequest is how long nbdcopy's requests are, in bytes: nbdcopy(1),
// --request-size. Our content has no zeros that would make it split them.
const copyRequest = 256 << 10

func (b *bench) copy(ctx context.Context, from, to string) (metrics, int64, error) {
	c, err := task{}.run(ctx, "nbdcopy", from, to)
	if err != nil {
		return nil, 0, err
	}
	m := metrics{mibPerSecond: float64(b.volume) / (1 << 20) / c.Wall.Seconds(), wall: c.Wall.Seconds()}
	return m, int64(b.volume) / copyRequest, nil
}

// copySource makes the file that is copied into volumes, unless it is there.
func (b *bench) copySource(ctx context.Context, path string) error {
	if info, err := os.Stat(path); err == nil && info.Size() == int64(b.volume) {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(overwrite(ctx, f, base(int64(b.volume))), f.Close())
}

// settleLimit bounds the wait for a server to come to rest.
const settleLimit = 15 * time.Second

// settle writes dirty pages to the disk and waits until a server has been idle
// for a moment, so that what it still does for an earlier job is not counted in
// this one.
func (b *bench) settle(ctx context.Context, pid int) error {
	if err := syncDisk(b.disk); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, quiet := time.Duration(-1), 0
	for quiet < 2 {
		used, err := cpuTime(pid)
		if err != nil {
			return err
		}
		if used-last <= clockTick && last >= 0 {
			quiet++
		} else {
			quiet = 0
		}
		last = used
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the server is still busy %v after the last request", settleLimit)
		}
	}
	return nil
}

// syncDisk writes back the dirty pages of the file system that holds a folder.
func syncDisk(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing can be lost
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}
