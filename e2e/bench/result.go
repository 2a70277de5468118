package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// A metric is the name of a figure; the name ends in its unit.
type metric string

const (
	iops         metric = "iops"
	mibPerSecond metric = "mib_per_s"
	p50          metric = "p50_us"
	p95          metric = "p95_us"
	p99          metric = "p99_us"
	flushP50     metric = "flush_p50_us"
	flushP99     metric = "flush_p99_us"
	flushMax     metric = "flush_max_us"
	cpuPerOp     metric = "server_cpu_us_per_request"
	cpuPerGiB    metric = "server_cpu_s_per_gib"
	cpuSeconds   metric = "cpu_s"
	wall         metric = "wall_s"
	firstByte    metric = "first_byte_ms"
	rss          metric = "peak_rss_bytes"
	added        metric = "added_bytes"
	stored       metric = "stored_bytes"
	objects      metric = "added_objects"
	perChanged   metric = "added_per_changed"
	requests     metric = "requests"
)

// higherIsBetter tells the metrics that count what was done from those that
// count what it took.
func (m metric) higherIsBetter() bool { return m == iops || m == mibPerSecond }

// format gives a value its unit, for people.
func (m metric) format(v float64) string {
	switch m {
	case iops:
		return fmt.Sprintf("%.0f IOPS", v)
	case mibPerSecond:
		return fmt.Sprintf("%.0f MiB/s", v)
	case wall, cpuSeconds, cpuPerGiB:
		return fmt.Sprintf("%.2f s", v)
	case rss:
		return fmt.Sprintf("%.0f MiB", v/(1<<20))
	case added, stored:
		return fmt.Sprintf("%.1f MB", v/1e6)
	case firstByte:
		return fmt.Sprintf("%.1f ms", v)
	case p50, p95, p99, flushP50, flushP99, flushMax, cpuPerOp:
		return fmt.Sprintf("%.1f µs", v)
	case perChanged:
		return fmt.Sprintf("%.2f x", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// metrics are the figures of one sample.
type metrics map[metric]float64

// A sample is one job on one peer in one round.
type sample struct {
	Job     string  `json:"job"`
	Peer    string  `json:"peer"`
	Round   int     `json:"round"`
	Load    float64 `json:"load"` // load average of the machine just before
	Metrics metrics `json:"metrics"`
}

// A bar is a ratio that the binary under test is to reach against a peer in the
// same run. A ratio above 1 means that ours is better, whatever the metric.
type bar struct {
	metric metric
	ours   string
	peer   string
	first  float64 // what the first version must reach; 0 is no bar
	goal   float64 // what the design is after; 0 is none
}

// A jobEntry is a job that was run, in the order of running.
type jobEntry struct {
	Name  string `json:"name"`
	Suite string `json:"suite,omitempty"` // of NBD jobs
	Unit  metric `json:"unit"`
	bars  []bar
}

// A gap is a figure that is not there, and why.
type gap struct {
	Job    string `json:"job,omitempty"`
	Peer   string `json:"peer"`
	Round  int    `json:"round,omitempty"`
	Reason string `json:"reason"`
}

// results are all that a run has found.
type results struct {
	Machine  machine        `json:"machine"`
	Seconds  float64        `json:"seconds"` // that the run took
	Jobs     []jobEntry     `json:"jobs"`
	Samples  []sample       `json:"samples"`
	Engine   []engineFigure `json:"engine"`
	Missing  []gap          `json:"missing"`  // peers that this machine lacks
	Failures []gap          `json:"failures"` // peers that broke at a job
}

func (r *results) addSample(s sample) { r.Samples = append(r.Samples, s) }

// addJob notes a job; suite is "" if it is none of NBD.
func (r *results) addJob(suite, name string, unit metric, bars []bar) {
	r.Jobs = append(r.Jobs, jobEntry{Name: name, Suite: suite, Unit: unit, bars: bars})
}

func (r *results) fail(job, peer string, round int, err error) {
	r.Failures = append(r.Failures, gap{Job: job, Peer: peer, Round: round, Reason: err.Error()})
}

// median is the median over the rounds of one figure; NaN if there is none.
func (r *results) median(job, peer string, m metric) float64 {
	var values []float64
	for _, s := range r.Samples {
		if v, ok := s.Metrics[m]; ok && s.Job == job && s.Peer == peer {
			values = append(values, v)
		}
	}
	return median(values)
}

// ratio is the median over the rounds of how many times better ours is than
// the peer; NaN if no round has both.
func (r *results) ratio(job string, b bar) float64 {
	ours, theirs := r.byRound(job, b.ours, b.metric), r.byRound(job, b.peer, b.metric)
	var ratios []float64
	for round, v := range ours {
		w, ok := theirs[round]
		switch {
		case !ok || v == 0 || w == 0:
		case b.metric.higherIsBetter():
			ratios = append(ratios, v/w)
		default:
			ratios = append(ratios, w/v)
		}
	}
	return median(ratios)
}

func (r *results) byRound(job, peer string, m metric) map[int]float64 {
	values := map[int]float64{}
	for _, s := range r.Samples {
		if v, ok := s.Metrics[m]; ok && s.Job == job && s.Peer == peer {
			values[s.Round] = v
		}
	}
	return values
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	mid := len(values) / 2
	if len(values)%2 == 0 {
		return (values[mid-1] + values[mid]) / 2
	}
	return values[mid]
}

// writeJSON writes everything, sample by sample, and the ratios.
func (b *bench) writeJSON(path string) error {
	type ratioEntry struct {
		Job    string  `json:"job"`
		Metric metric  `json:"metric"`
		Ours   string  `json:"ours"`
		Peer   string  `json:"peer"`
		Ratio  float64 `json:"ratio"`
		First  float64 `json:"first_version,omitempty"`
		Goal   float64 `json:"goal,omitempty"`
	}
	out := struct {
		*results
		Ratios []ratioEntry `json:"ratios"`
	}{results: &b.results, Ratios: []ratioEntry{}}
	for _, job := range b.Jobs {
		for _, bar := range job.bars {
			if ratio := b.ratio(job.Name, bar); !math.IsNaN(ratio) {
				out.Ratios = append(out.Ratios, ratioEntry{job.Name, bar.metric, bar.ours, bar.peer, ratio, bar.first, bar.goal})
			}
		}
	}
	raw, err := json.MarshalIndent(out, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}
