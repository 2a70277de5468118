package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A stage is one step of a round of backups: what is done to the image, and
// then backup or restore. The stages of a round build on each other.
type stage struct {
	name    string
	what    string
	change  func(size int64, seed uint64) []run // nil: nothing changes
	restore bool                                // restore the newest backup and compare, instead of a backup
	skip    []string                            // peers that would only repeat what another stage shows
	bars    []bar
}

var stages = []stage{
	{name: "backup full", what: "the first backup of an image of real files", bars: []bar{
		{metric: wall, ours: "varve", peer: "restic", first: 1.5, goal: 1 / 0.55},
		{metric: wall, ours: "varve", peer: "borg", goal: 1 / 0.55},
		{metric: cpuSeconds, ours: "varve", peer: "restic", goal: 1},
		{metric: cpuSeconds, ours: "varve", peer: "borg-64k", goal: 1},
		{metric: added, ours: "varve", peer: "restic", goal: 1 / 1.13},
		{metric: added, ours: "varve-default", peer: "restic", goal: 1 / 1.08},
	}},
	{name: "backup 1 % scattered", what: "incremental after one block in a hundred was overwritten with random bytes",
		change: scattered, skip: []string{"qemu-img", "zstd"}, bars: []bar{
			{metric: wall, ours: "varve", peer: "restic", goal: 50},
			{metric: wall, ours: "varve", peer: "borg-64k", goal: 50},
			{metric: added, ours: "varve", peer: "borg-64k", goal: 5},
		}},
	{name: "backup 1 % clustered", what: "incremental after as many blocks were overwritten in runs of 64 KiB to 1 MiB; a second full where a peer has no incremental",
		change: clustered},
	{name: "backup unchanged", what: "incremental after no change; restic sees from the file's times that there is nothing to read", skip: []string{"qemu-img", "zstd"}},
	{name: "restore", what: "the newest backup, onto the disk; compared byte for byte", restore: true, bars: []bar{
		{metric: wall, ours: "varve", peer: "restic", goal: 1 / 0.85},
		{metric: cpuSeconds, ours: "varve", peer: "restic", goal: 1 / 0.7},
	}},
}

// A backupStand is a peer in a round.
type backupStand struct {
	backupPeer
	repository
	places
	backups int   // made so far
	broken  error // why it takes no further part
}

// backupJobs runs the rounds of backups. Because a stage builds on those before
// it, all stages run up to the last one that is wanted.
func (b *bench) backupJobs(ctx context.Context) error {
	last := -1
	for i, s := range stages {
		if wants(b.only, "backup/"+s.name) {
			last = i
		}
	}
	if last < 0 {
		return nil
	}
	if !b.has("backup image", []string{"mke2fs"}) {
		return nil
	}
	if err := enoughSpace(b.repos, int64(b.image)*3); err != nil {
		return err
	}
	base := filepath.Join(b.disk, "base.raw")
	b.say("make an image of %s", b.image)
	if err := b.makeImage(ctx, base, int64(b.image)); err != nil {
		return err
	}
	for _, s := range stages[:last+1] {
		b.addJob("", s.name, wall, s.bars)
	}
	for round := range b.roundsOr(1, 3) {
		if err := b.backupRound(ctx, base, stages[:last+1], round); err != nil {
			return err
		}
	}
	return os.Remove(base)
}

func enoughSpace(dir string, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free, the repositories may need %d; name another folder with -repo or a smaller -image",
			dir, free>>20, need>>20)
	}
	return nil
}

func (b *bench) backupRound(ctx context.Context, base string, list []stage, round int) (err error) {
	home, repos := filepath.Join(b.disk, "backup"), filepath.Join(b.repos, "backup")
	image := filepath.Join(b.disk, "image.raw")
	defer func() { err = errors.Join(err, os.RemoveAll(home), os.RemoveAll(repos), os.RemoveAll(image)) }()
	if _, err := (task{}).run(ctx, "cp", "--sparse=always", base, image); err != nil {
		return err
	}
	wanted := func(p backupPeer) bool { return wants(b.peers, p.name) }
	stands := b.openBackups(ctx, wanted, round, image, home, repos)
	defer func() {
		for _, s := range stands {
			if cerr := s.close(); cerr != nil {
				b.fail("end", s.name, round, cerr)
			}
		}
	}()
	for i, stage := range list {
		if err := b.backupStage(ctx, stage, uint64(i), round, image, stands); err != nil {
			return err
		}
	}
	return nil
}

// openBackups makes an empty repository for each peer that is wanted and there.
func (b *bench) openBackups(ctx context.Context, wanted func(backupPeer) bool, round int, image, home, repos string) (stands []*backupStand) {
	for _, p := range backupPeers {
		if !wanted(p) || !b.has(p.name, p.needs) {
			continue
		}
		at := places{image: image, home: filepath.Join(home, p.name), repo: filepath.Join(repos, p.name)}
		err := errors.Join(os.MkdirAll(at.home, 0o700), os.MkdirAll(at.repo, 0o700))
		var r repository
		if err == nil {
			r, err = p.open(ctx, b, at)
		}
		if err != nil {
			b.fail("start", p.name, round, err)
			b.say("%-24s round %d cannot start: %v", p.name, round+1, err)
			continue
		}
		stands = append(stands, &backupStand{backupPeer: p, repository: r, places: at})
	}
	return stands
}

// backupStage changes the image, tells every peer, and measures each.
func (b *bench) backupStage(ctx context.Context, st stage, seed uint64, round int, path string, stands []*backupStand) (err error) {
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	var runs []run
	if st.change != nil {
		runs = st.change(int64(b.image), seed)
		if err := overwrite(ctx, image, runs); err != nil {
			return err
		}
	}
	for _, s := range stands {
		if s.broken == nil && st.change != nil {
			s.broken = s.change(ctx, runs)
		}
		if s.broken == nil && slices.Contains(st.skip, s.name) {
			continue
		}
		load := loadAverage()
		var m metrics
		if s.broken == nil {
			m, s.broken = s.measure(ctx, b, st, total(runs), image)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.broken != nil {
			b.fail(st.name, s.name, round, s.broken)
			b.say("%-24s %-9s round %d FAILED: %v", st.name, s.name, round+1, s.broken)
			continue
		}
		b.addSample(sample{Job: st.name, Peer: s.name, Round: round, Load: load, Metrics: m})
		b.say("%-24s %-9s round %d  %s, CPU %s", st.name, s.name, round+1, wall.format(m[wall]), cpuSeconds.format(m[cpuSeconds]))
	}
	return nil
}

// measure takes one stage on one peer.
func (s *backupStand) measure(ctx context.Context, b *bench, st stage, changed int64, image *os.File) (m metrics, err error) {
	if err := syncDisk(b.disk); err != nil {
		return nil, err
	}
	if counts, ok := s.repository.(interface{ requests() int64 }); ok {
		before := counts.requests()
		defer func() {
			if err == nil {
				m[requests] = float64(counts.requests() - before)
			}
		}()
	}
	if st.restore {
		return s.measureRestore(ctx, image)
	}
	return s.measureBackup(ctx, changed)
}

func (s *backupStand) measureBackup(ctx context.Context, changed int64) (metrics, error) {
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	bytes, files, err := folderSize(s.repo)
	if err != nil {
		return nil, err
	}
	c, err := s.backup(ctx, s.backups)
	if err != nil {
		return nil, err
	}
	s.backups++
	bytesAfter, filesAfter, err := folderSize(s.repo)
	if err != nil {
		return nil, err
	}
	m := c.metrics()
	m[stored] = float64(bytesAfter)
	m[added] = float64(bytesAfter - bytes)
	m[objects] = float64(filesAfter - files)
	if changed > 0 {
		m[perChanged] = m[added] / float64(changed)
	}
	return m, nil
}

func (s *backupStand) measureRestore(ctx context.Context, image *os.File) (metrics, error) {
	c, err := s.restore(ctx, s.backups)
	if err != nil {
		return nil, err
	}
	if err := s.compare(ctx, image); err != nil {
		return nil, err
	}
	return c.metrics(), os.RemoveAll(filepath.Join(s.home, "restored"))
}

func (c cost) metrics() metrics {
	return metrics{wall: c.Wall.Seconds(), cpuSeconds: c.CPU.Seconds(), rss: float64(c.PeakRSS)}
}
