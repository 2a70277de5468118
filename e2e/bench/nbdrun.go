package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An nbdStand is a peer that is up and filled.
type nbdStand struct {
	nbdPeer
	export
}

// A suite is jobs that some peers take turns at.
type suite struct {
	name    string // of the jobs, before a slash, for -only
	title   string // of its tables
	about   string // under the title
	peers   []nbdPeer
	jobs    []nbdJob
	hollow  bool     // the peers hold nothing: they are not filled
	size    byteSize // of the volumes
	seconds float64  // of one timed run
	rounds  int
}

// suites are all that is measured over NBD.
func (b *bench) suites() []suite {
	pick := func(quick, full float64) float64 {
		if b.quick {
			return quick
		}
		return full
	}
	bare := func(s suite) suite {
		s.size, s.seconds, s.rounds = b.volume/4, b.seconds/pick(4, 5), b.roundsOr(2, 3)
		return s
	}
	return []suite{
		{name: "nbd", title: "NBD", peers: nbdPeers, jobs: nbdJobList, size: b.volume, seconds: b.seconds, rounds: b.roundsOr(2, 3)},
		bare(suite{name: "null", title: "Servers alone", peers: nullPeers, jobs: bareJobs("null", nullPeers), hollow: true,
			about: "Nothing is stored: what is measured is the server."}),
		bare(suite{name: "file", title: "Servers with a file", peers: filePeers, jobs: bareJobs("file", filePeers),
			about: "All that is read or overwritten is in the page cache."}),
		bare(suite{name: "tls", title: "Servers alone, TLS", peers: tlsPeers, jobs: tlsJobs(), hollow: true,
			about: "Nothing is stored, and every server has the same certificate."}),
	}
}

// label is the name of a job in the results. Those of the first suite are as
// old as the command.
func (s *suite) label(job nbdJob) string {
	if s.name == "nbd" {
		return job.name
	}
	return s.name + " " + job.name
}

// nbdJobs runs the suites one after the other.
func (b *bench) nbdJobs(ctx context.Context) error {
	for _, s := range b.suites() {
		var jobs []nbdJob
		for _, job := range s.jobs {
			if wants(b.only, s.name+"/"+job.name) && !(b.quick && job.fullOnly) {
				jobs = append(jobs, job)
			}
		}
		if s.jobs = jobs; len(jobs) == 0 {
			continue
		}
		if err := b.runSuite(ctx, &s); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) runSuite(ctx context.Context, of *suite) (err error) {
	dir := filepath.Join(b.disk, of.name)
	defer func() {
		b.say("remove the volumes") // layers of small random writes take the file system a while
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	stands, err := b.openNBD(ctx, of, dir)
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
	for _, job := range of.jobs {
		b.addJob(of.name, of.label(job), job.unit, job.bars)
		for round := range of.rounds {
			for _, s := range stands {
				if err := b.nbdRound(ctx, of, job, s, round); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// openNBD starts and fills every peer that the machine has. On error it still
// returns what is to be closed.
func (b *bench) openNBD(ctx context.Context, of *suite, dir string) (stands []nbdStand, err error) {
	var first string // digest of the first peer
	for _, p := range of.peers {
		if !wants(b.peers, p.name) || !b.has(p.name, p.needs) {
			continue
		}
		b.say("start %s", p.name)
		home := filepath.Join(dir, strings.ReplaceAll(p.name, " ", "-")) // a URI has no room for spaces
		if err := os.MkdirAll(home, 0o700); err != nil {
			return stands, err
		}
		e, err := p.open(ctx, b, home, of.size)
		if err != nil {
			b.fail("start", p.name, 0, err)
			continue
		}
		s := nbdStand{p, e}
		if of.hollow {
			stands = append(stands, s)
			continue
		}
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
	c, err := dial(socket, name, dialOptions{certificates: s.certificates()})
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// nbdRound measures one job on one peer once. A peer that fails is noted; the
// error is of the run as a whole.
func (b *bench) nbdRound(ctx context.Context, of *suite, job nbdJob, s nbdStand, round int) error {
	before, label := loadAverage(), of.label(job)
	m, err := b.measureNBD(ctx, of, job, s, round)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		b.fail(label, s.name, round, err)
		b.say("%-32s %-12s round %d FAILED: %v", label, s.name, round+1, err)
		return nil
	}
	b.addSample(sample{Job: label, Peer: s.name, Round: round, Load: before, Metrics: m})
	b.say("%-32s %-12s round %d  %s", label, s.name, round+1, job.unit.format(m[job.unit]))
	return nil
}

func (b *bench) measureNBD(ctx context.Context, of *suite, job nbdJob, s nbdStand, round int) (metrics, error) {
	if job.writes && !of.hollow {
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
	before, err := treeTime(s.process().pid())
	if err != nil {
		return nil, err
	}
	m, ops, err := b.client(ctx, of, job, s, uint64(round))
	if err != nil {
		return nil, err
	}
	after, err := treeTime(s.process().pid())
	if err != nil {
		return nil, err
	}
	m[cpuSeconds] = (after - before).Seconds()
	m[cpuPerOp] = micros(after-before) / float64(max(ops, 1))
	m[cpuPerGiB] = m[cpuPerOp] * float64(1<<30/job.bytes()) / 1e6
	return m, nil
}

// client runs the job's requests and says how many there were.
func (b *bench) client(ctx context.Context, of *suite, job nbdJob, s nbdStand, seed uint64) (metrics, int64, error) {
	switch job.client {
	case useBatch:
		return b.batch(ctx, of.seconds, job, s, seed)
	case useCopyOut:
		return b.copy(ctx, of, job, uri(s), "null:")
	case useCopyIn:
		source := filepath.Join(b.disk, "source.raw")
		if err := b.copySource(ctx, source, int64(of.size)); err != nil {
			return nil, 0, err
		}
		return b.copy(ctx, of, job, source, uri(s))
	}
	return b.fio(ctx, of.seconds, job, uri(s), seed)
}

// batch runs our own load, bypassing contexts: it lasts seconds.
func (b *bench) batch(ctx context.Context, seconds float64, job nbdJob, s nbdStand, seed uint64) (_ metrics, _ int64, err error) {
	socket, name := s.address()
	var conns []*conn
	defer func() {
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
	}()
	for range max(job.conns, 1) {
		c, err := dial(socket, name, dialOptions{structured: job.structured, certificates: s.certificates()})
		if err != nil {
			return nil, 0, err
		}
		conns = append(conns, c)
	}
	r, err := load{write: job.writes, block: job.block, depth: job.depth, flushEvery: job.flushEvery, seed: seed,
		duration: time.Duration(seconds * float64(time.Second))}.runAll(conns)
	if err := errors.Join(err, ctx.Err()); err != nil {
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
		m[flushMax] = micros(r.flush.quantile(1))
	}
	return m, r.ops + r.flushes, nil
}

// copyRequest is how long nbdcopy's requests are, in bytes: nbdcopy(1),
// --request-size. Our content has no zeros that would make it split them.
const copyRequest = 256 << 10

func (b *bench) copy(ctx context.Context, of *suite, job nbdJob, from, to string) (metrics, int64, error) {
	args := []string{from, to}
	if !job.sparse {
		args = append([]string{"--no-extents"}, args...)
	}
	c, err := task{}.run(ctx, "nbdcopy", args...)
	if err != nil {
		return nil, 0, err
	}
	m := metrics{mibPerSecond: float64(of.size) / (1 << 20) / c.Wall.Seconds(), wall: c.Wall.Seconds()}
	return m, int64(of.size) / copyRequest, nil
}

// bytes is the length of a job's requests.
func (job *nbdJob) bytes() int {
	if job.block == 0 {
		return copyRequest
	}
	return job.block
}

// copySource makes the file that is copied into volumes, unless it is there.
func (b *bench) copySource(ctx context.Context, path string, size int64) error {
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(overwrite(ctx, f, base(size)), f.Close())
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
