package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mountedBackup = 1 // the second one: the first with one block in a hundred changed
	mountReads    = 300
	mountRun      = 128 << 20 // bytes that are read in order
	mountLimit    = time.Minute
	mountPoll     = time.Millisecond
)

// A mountStep is what is done with a mount. The steps of a round build on each
// other, on one mount for each peer.
type mountStep struct {
	name, what string
	take       func(*mounted, mountPlan) (metrics, error)
	columns    []mountColumn // the first one leads
	bars       []bar
}

// A mountColumn is a metric as the report shows it.
type mountColumn struct {
	head   string
	of     metric
	format string
	unit   float64 // of the column, in the metric's
}

var mountMemory = mountColumn{"peak RSS MiB", rss, "%.1f", 1 << 20}

var mountSteps = []mountStep{
	{
		name: "first byte", what: "from the start of the program to the first byte of the image", take: (*mounted).first,
		columns: []mountColumn{{"ms", firstByte, "%.0f", 1}, {"CPU s", cpuSeconds, "%.2f", 1}, mountMemory},
		bars:    mountBars(firstByte, 1/0.35),
	},
	{
		name: "4k randread qd1", what: fmt.Sprintf("%d reads of 4 KiB of data at random places, one after the other", mountReads), take: (*mounted).random,
		columns: []mountColumn{{"p50 µs", p50, "%.0f", 1}, {"p95 µs", p95, "%.0f", 1}, {"p99 µs", p99, "%.0f", 1}, {"reads/s", iops, "%.0f", 1},
			{"CPU µs a read", cpuPerOp, "%.0f", 1}, mountMemory},
		bars: mountBars(p50, 1/0.4),
	},
	{
		name: "1m read qd1", what: fmt.Sprintf("%d MiB in order from the middle of the image, 1 MiB a read", mountRun>>20), take: (*mounted).ordered,
		columns: []mountColumn{{"MiB/s", mibPerSecond, "%.0f", 1}, {"CPU s a GiB", cpuPerGiB, "%.2f", 1}, mountMemory},
	},
}

func (s *mountStep) job() string { return "mount " + s.name }

// mountBars are one bar against several peers, of which the best counts.
func mountBars(m metric, goal float64) (bars []bar) {
	for _, peer := range []string{"restic", "borg", "borg-64k"} {
		bars = append(bars, bar{metric: m, ours: "varve", peer: peer, goal: goal})
	}
	return append(bars, bar{metric: m, ours: "varve-s3", peer: "restic-s3", goal: goal})
}

// mountJobs mounts the backup of one image that each program has made. Unlike
// the backups, the mounts take turns in rounds.
func (b *bench) mountJobs(ctx context.Context) (err error) {
	last := -1
	for i, s := range mountSteps {
		if wants(b.only, "mount/"+s.name) {
			last = i
		}
	}
	if last < 0 || !b.has("backup image", []string{"mke2fs"}) {
		return nil
	}
	if err := enoughSpace(b.repos, int64(b.image)*3); err != nil {
		return err
	}
	path := filepath.Join(b.disk, "mounted.raw")
	b.say("make an image of %s", b.image)
	if err := b.makeImage(ctx, path, int64(b.image)); err != nil {
		return err
	}
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	home, repos := filepath.Join(b.disk, "mount"), filepath.Join(b.repos, "mount")
	defer func() {
		err = errors.Join(err, image.Close(), os.Remove(path), os.RemoveAll(home), os.RemoveAll(repos))
	}()
	sources, err := b.mountSources(ctx, image, home, repos)
	if err != nil {
		return err
	}
	if b.has("varve-s3", []string{gateway}) {
		if b.slow, err = startSlowS3(ctx, b, repos); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.slow.close()) }()
	}
	for _, s := range mountSteps[:last+1] {
		b.addJob("", s.job(), s.columns[0].of, s.bars)
	}
	for round := range b.roundsOr(3, 5) {
		plan, err := planReads(image, int64(b.image), uint64(round))
		if err != nil {
			return err
		}
		for _, p := range mountPeers {
			at, there := sources[p.of]
			if !there || !wants(b.peers, p.name) || !b.has(p.name, p.needs) {
				continue
			}
			if err := b.mountRound(ctx, p, at, plan, round, mountSteps[:last+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountSources lets each program that is to be mounted back up the image, and
// then once more after one block in a hundred has changed.
func (b *bench) mountSources(ctx context.Context, image *os.File, home, repos string) (map[string]places, error) {
	wanted := func(p backupPeer) bool {
		return slices.ContainsFunc(mountPeers, func(m mountPeer) bool { return m.of == p.name && wants(b.peers, m.name) })
	}
	stands := b.openBackups(ctx, wanted, 0, image.Name(), home, repos)
	runs := scattered(int64(b.image), 0)
	for n := range mountedBackup + 1 {
		if n > 0 {
			if err := overwrite(ctx, image, runs); err != nil {
				return nil, err
			}
		}
		for _, s := range stands {
			if n > 0 && s.broken == nil {
				s.broken = s.change(ctx, runs)
			}
			if s.broken == nil {
				_, s.broken = s.backup(ctx, n)
			}
			b.say("%-24s %-11s backup %d of 2", "mount", s.name, n+1)
		}
	}
	sources := map[string]places{}
	for _, s := range stands {
		if err := errors.Join(s.broken, s.close()); err != nil {
			b.fail("start", s.name, 0, err)
			continue
		}
		sources[s.name] = s.places
	}
	return sources, ctx.Err()
}

// A mountPlan is what is read of every mount of a round.
type mountPlan struct {
	image   *os.File // what is expected
	size    int64
	offsets []int64 // of blocks of data
}

// planReads draws blocks of the image that are not all zeros: holes cost nobody
// anything.
func planReads(image *os.File, size int64, seed uint64) (mountPlan, error) {
	plan := mountPlan{image: image, size: size}
	random := rand.New(rand.NewPCG(seed, 4))
	block, zeros := make([]byte, blockSize), make([]byte, blockSize)
	for tries := 0; len(plan.offsets) < mountReads; tries++ {
		if tries > 100*mountReads {
			return plan, errors.New("the image is nearly empty: nothing to read at random")
		}
		off := random.Int64N(size/blockSize) * blockSize
		if _, err := image.ReadAt(block, off); err != nil {
			return plan, err
		}
		if !bytes.Equal(block, zeros) {
			plan.offsets = append(plan.offsets, off)
		}
	}
	return plan, nil
}

// mountRound mounts the backup once and takes all steps. What fails is told in
// the report; an error ends the run.
func (b *bench) mountRound(ctx context.Context, p mountPeer, at places, plan mountPlan, round int, steps []mountStep) error {
	if err := syncDisk(b.disk); err != nil {
		return err
	}
	load := loadAverage()
	m, err := b.mount(ctx, p, at)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.fail(steps[0].job(), p.name, round, err)
		b.say("%-24s %-11s round %d FAILED: %v", "mount", p.name, round+1, err)
		return nil
	}
	for _, step := range steps {
		figures, err := step.take(m, plan)
		if err != nil {
			err = fmt.Errorf("%w; %s said: %s", err, m.serving.name, m.serving.log)
			b.fail(step.job(), p.name, round, err)
			b.say("%-24s %-11s round %d FAILED: %v", step.job(), p.name, round+1, err)
			break
		}
		b.addSample(sample{Job: step.job(), Peer: p.name, Round: round, Load: load, Metrics: figures})
		b.say("%-24s %-11s round %d  %s", step.job(), p.name, round+1, step.columns[0].of.format(figures[step.columns[0].of]))
	}
	if err := m.close(); err != nil {
		b.fail("unmount", p.name, round, err)
	}
	return ctx.Err()
}

// A mounted is a backup that is mounted, with the image open in it.
type mounted struct {
	mountPlace
	program *server // what was started
	serving *server // what serves the mount: program, or the daemon that it asked
	image   *os.File
	took    time.Duration // until the first byte
}

// mount starts the peer's program and reads the first byte of the image as soon
// as it is there.
func (b *bench) mount(ctx context.Context, p mountPeer, at places) (*mounted, error) {
	m := &mounted{mountPlace: mountPlace{places: at, cold: filepath.Join(b.disk, "cold"), point: filepath.Join(b.disk, "mountpoint")}}
	for _, dir := range []string{m.cold, m.point} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	c, err := p.open(ctx, b, m.mountPlace)
	if err == nil {
		m.serving = c.server
		err = m.start(ctx, c)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *mounted) start(ctx context.Context, c mountCommand) (err error) {
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	began := time.Now()
	if m.program, err = launch(c.env, c.args[0], c.args[1:]...); err != nil {
		return err
	}
	if m.serving == nil {
		m.serving = m.program
	}
	return withoutSignals(func() error {
		for {
			file, err := readFirst(c.file)
			if err == nil {
				m.image, m.took = file, time.Since(began)
				return nil
			}
			if ended := m.serving.running(); ended != nil {
				return ended
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s shows no byte of %s: %w; it said: %s", m.program.name, c.file, err, m.program.log)
			}
			// Not time.Sleep: who is measured may need all cores, and the runtime's
			// timers would take some of that.
			pause := unix.NsecToTimespec(int64(mountPoll))
			unix.Nanosleep(&pause, nil) // one that is cut short does no harm
		}
	})
}

// withoutSignals runs f on a thread that no signal interrupts. The Go runtime
// sends itself some, and there are peers to whom an interrupted read is a
// failed one.
func withoutSignals(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with this goroutine
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// readFirst opens a file that has a first byte.
func readFirst(path string) (*os.File, error) {
	// os.Open would tell the runtime's poller of it.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if n, err := unix.Pread(fd, make([]byte, 1), 0); n != 1 {
		unix.Close(fd)
		return nil, cmp.Or(err, io.ErrUnexpectedEOF)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// first tells how long the first byte took, with all that had to be done for it.
func (m *mounted) first(mountPlan) (metrics, error) {
	cpu, err := treeTime(m.serving.pid())
	if err != nil {
		return nil, err
	}
	peak, err := peakRSS(m.serving.pid())
	return metrics{firstByte: m.took.Seconds() * 1000, cpuSeconds: cpu.Seconds(), rss: float64(peak)}, err
}

// random reads the blocks of the plan and compares them.
func (m *mounted) random(plan mountPlan) (metrics, error) {
	var h histogram
	got := make([]byte, len(plan.offsets)*blockSize)
	figures, err := m.charge(int64(len(got)), func() error {
		for i, off := range plan.offsets {
			began := time.Now()
			if _, err := m.image.ReadAt(got[i*blockSize:][:blockSize], off); err != nil {
				return err
			}
			h.add(time.Since(began))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, off := range plan.offsets {
		if err := plan.compare(got[i*blockSize:][:blockSize], off); err != nil {
			return nil, err
		}
	}
	figures[p50], figures[p95], figures[p99] = micros(h.quantile(0.5)), micros(h.quantile(0.95)), micros(h.quantile(0.99))
	return figures, nil
}

// ordered reads a part of the image from its middle on and compares it.
func (m *mounted) ordered(plan mountPlan) (metrics, error) {
	from, n := plan.size/2, min(mountRun, plan.size/2)
	got := make([]byte, n)
	figures, err := m.charge(n, func() error {
		for at := int64(0); at < n; at += chunkSize {
			if _, err := m.image.ReadAt(got[at:min(at+chunkSize, n)], from+at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return figures, plan.compare(got, from)
}

// charge runs what reads n bytes, and tells what it took of the process that
// serves.
func (m *mounted) charge(n int64, reads func() error) (metrics, error) {
	pid := m.serving.pid()
	before, err := treeTime(pid)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := withoutSignals(reads); err != nil {
		return nil, err
	}
	took := time.Since(began)
	after, err := treeTime(pid)
	if err != nil {
		return nil, err
	}
	peak, err := peakRSS(pid)
	requests, gib := float64(n)/blockSize, float64(n)/(1<<30)
	return metrics{
		iops: requests / took.Seconds(), mibPerSecond: gib * 1024 / took.Seconds(), rss: float64(peak),
		cpuPerOp: micros(after-before) / requests, cpuPerGiB: (after - before).Seconds() / gib,
	}, err
}

// compare reports an error unless got is what the image has at off.
func (p mountPlan) compare(got []byte, off int64) error {
	want := make([]byte, len(got))
	if _, err := p.image.ReadAt(want, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("what is mounted differs from the image in [%d, %d)", off, off+int64(len(got)))
	}
	return nil
}

// close unmounts and ends what was started.
func (m *mounted) close() error {
	var errs []error
	if m.image != nil {
		m.image.Close() // read only
	}
	if m.program != nil {
		errs = append(errs, unmount(m.point), m.program.end())
	}
	if m.serving != nil && m.serving != m.program {
		errs = append(errs, m.serving.stop())
	}
	return errors.Join(append(errs, os.Remove(m.point), os.RemoveAll(m.cold))...)
}

// unmount takes away what is mounted at a folder, if anything is.
func unmount(point string) error {
	if os.Geteuid() != 0 {
		_, err := output(context.Background(), "fusermount3", "-u", point)
		return err
	}
	if err := unix.Unmount(point, 0); err != nil && err != unix.EINVAL { // it is no mount point
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}
