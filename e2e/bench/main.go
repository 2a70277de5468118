// Command bench measures the built varve binary beside its peers.
//
// All of a run's peers stand next to each other, hold the same bytes, and take
// turns: for each job, round after round, every peer once. Figures are medians
// of the rounds; a ratio is the median of the ratios within each round, so that
// load from outside, which changes over minutes, hits both sides of it.
//
// Jobs (nbdjob.go, barejob.go, engine.go, backupjob.go, mountjob.go), peers (nbdpeer.go, barepeer.go, backuppeer.go,
// mountpeer.go) and bars are tables of values: to measure one thing more, add a line.
//
// docs/bench.md says what each job does and how to read the tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

// options are what a run is told on the command line. After defaults has run
// every field has a usable value.
type options struct {
	varve   string         // path of the binary under test
	tools   string         // folder with bareserver, and peers from e2e/peers.sh
	quick   bool           // small volumes, short runs, few rounds
	only    *regexp.Regexp // names of jobs to run; nil is all
	peers   *regexp.Regexp // names of peers to run; nil is all
	rounds  int            // of every job; 0 is the job's own default
	json    string         // file for all samples; "" is none
	dir     string         // where the scratch folder goes
	repo    string         // where the repositories of backups go
	volume  byteSize       // size of the NBD volumes
	image   byteSize       // size of the image that is backed up
	seconds float64        // length of one timed NBD run
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.varve, "varve", filepath.Join("bin", "varve"), "`path` of the binary under test")
	fs.StringVar(&o.tools, "tools", ".tools", "`folder` with e2e/bench/bareserver, built, and what e2e/peers.sh unpacks")
	fs.BoolVar(&o.quick, "quick", false, "small volumes, short runs, few rounds")
	only := fs.String("only", "", "run only the jobs whose nbd/NAME, null/NAME, file/NAME, tls/NAME, engine/NAME, backup/NAME or mount/NAME matches `regexp`")
	peers := fs.String("peers", "", "run only the peers whose name matches `regexp`")
	fs.IntVar(&o.rounds, "rounds", 0, "`number` of rounds (default 3; with -quick 2, backups 1)")
	fs.StringVar(&o.json, "json", "", "write every sample to `file` as JSON")
	fs.StringVar(&o.dir, "dir", os.TempDir(), "`folder` on the disk to measure; all scratch goes below it")
	fs.StringVar(&o.repo, "repo", "/dev/shm", "`folder` for the repositories of backups")
	fs.Var(&o.volume, "volume", "`size` of the NBD volumes (default 2G; with -quick 1G)")
	fs.Var(&o.image, "image", "`size` of the image that is backed up (default 4G; with -quick 2G)")
	fs.Float64Var(&o.seconds, "seconds", 0, "`length` of one timed NBD run (default 5; with -quick 2)")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see -help", fs.Arg(0))
	}
	var err error
	if o.only, err = optionalRegexp("-only", *only); err != nil {
		return o, err
	}
	if o.peers, err = optionalRegexp("-peers", *peers); err != nil {
		return o, err
	}
	o.defaults()
	return o, o.validate()
}

func optionalRegexp(flag, s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, nil
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return re, nil
}

func (o *options) defaults() {
	pick := func(quick, full float64) float64 {
		if o.quick {
			return quick
		}
		return full
	}
	if o.volume == 0 {
		o.volume = byteSize(pick(1, 2)) << 30
	}
	if o.image == 0 {
		o.image = byteSize(pick(2, 4)) << 30
	}
	if o.seconds == 0 {
		o.seconds = pick(2, 5)
	}
}

func (o *options) validate() error {
	if o.rounds < 0 {
		return fmt.Errorf("-rounds %d: want at least 1", o.rounds)
	}
	if o.seconds < 0.1 {
		return fmt.Errorf("-seconds %v: want at least 0.1", o.seconds)
	}
	for _, size := range []byteSize{o.volume, o.image} {
		if size < 64<<20 || size%(1<<20) != 0 {
			return fmt.Errorf("size %d: want a whole number of MiB, at least 64", size)
		}
	}
	return nil
}

// wants reports whether the job or peer with this name is to run.
func wants(re *regexp.Regexp, name string) bool { return re == nil || re.MatchString(name) }

// roundsOr is the number of rounds asked for on the command line, or else the
// default of the kind of job.
func (o *options) roundsOr(quick, full int) int {
	switch {
	case o.rounds > 0:
		return o.rounds
	case o.quick:
		return quick
	}
	return full
}

// A bench is one run: what was asked, where it works and what it found.
type bench struct {
	options
	disk     string    // scratch folder of this run, on the disk that is measured
	repos    string    // scratch folder of this run for repositories
	slow     *slowS3   // while backups are mounted, if its program is there
	progress io.Writer // one line for each thing done
	results
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	b := &bench{options: o, progress: stderr}
	if b.disk, err = os.MkdirTemp(o.dir, "varve-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.disk)) }()
	if b.repos, err = os.MkdirTemp(o.repo, "varve-bench-"); err != nil {
		return fmt.Errorf("folder for repositories: %w; name another one with -repo", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.repos)) }()

	b.Machine = describeMachine(ctx, b)
	started := time.Now()
	for _, section := range []func(context.Context) error{b.nbdJobs, b.engineJobs, b.backupJobs, b.mountJobs} {
		if err := section(ctx); err != nil {
			return err
		}
	}
	b.Seconds = time.Since(started).Seconds()
	b.Machine.LoadEnd = loadAverage()
	b.report(stdout)
	if o.json == "" {
		return nil
	}
	return b.writeJSON(o.json)
}

// underTest stands for the binary under test in the lists of programs that
// peers need.
const underTest = "varve"

// bareServer stands there for the servers of ours in e2e/bench/bareserver.
const bareServer = "bareserver"

func (o *options) bare() string { return filepath.Join(o.tools, bareServer) }

// has reports whether the programs that a peer needs are there, and notes the
// first that is not.
func (b *bench) has(peer string, programs []string) bool {
	for _, program := range programs {
		switch program {
		case underTest:
			program = b.varve
		case bareServer:
			program = b.bare()
		case gateway:
			program = b.gateway()
		case newerServer:
			program = b.newer(newerServer)[0]
		}
		if _, err := find(program); err != nil {
			if g := (gap{Peer: peer, Reason: err.Error()}); !slices.Contains(b.Missing, g) {
				b.Missing = append(b.Missing, g)
			}
			return false
		}
	}
	return true
}

// say prints one line of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%s load %.1f  %s\n", time.Now().Format(time.TimeOnly), loadAverage(), fmt.Sprintf(format, args...))
}
