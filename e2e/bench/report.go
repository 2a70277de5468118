package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// report prints the tables of a run as Markdown.
func (b *bench) report(w io.Writer) {
	m := b.Machine
	fmt.Fprintf(w, "## Measured\n\n%s, %d cores, %.0f GiB, Linux %s; load average %.1f at the start, %.1f at the end; %.0f s.\n",
		m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.Kernel, m.LoadStart, m.LoadEnd, b.Seconds)
	for _, name := range slices.Sorted(maps.Keys(m.Versions)) {
		fmt.Fprintf(w, "%s: %s  \n", name, m.Versions[name])
	}
	for _, s := range b.suites() {
		b.reportSuite(w, &s)
	}
	b.reportEngine(w)
	b.reportBackups(w)
	b.reportMounts(w)
	b.reportBars(w)
	reportGaps(w, "Missing", b.Missing)
	reportGaps(w, "Failed", b.Failures)
}

// reportSuite prints throughput, latency and processor time of a suite's jobs.
func (b *bench) reportSuite(w io.Writer, of *suite) {
	var jobs []jobEntry
	for _, job := range b.Jobs {
		if job.Suite == of.name {
			jobs = append(jobs, job)
		}
	}
	if len(jobs) == 0 {
		return
	}
	heads, legend := []string{"job"}, []string(nil)
	for _, p := range of.peers {
		heads = append(heads, p.name)
		legend = append(legend, p.name+": "+p.what)
	}
	fmt.Fprintf(w, "\n### %s: throughput\n\nVolumes of %s, runs of %v s, medians. ", of.title, of.size, of.seconds)
	if of.about != "" {
		fmt.Fprint(w, of.about, " ")
	}
	fmt.Fprintf(w, "%s.\n\n", strings.Join(legend, "; "))
	throughput := table{heads: append(slices.Clone(heads), "unit")}
	latency, cpu, flush := table{heads: heads}, table{heads: heads}, table{heads: heads}
	for _, job := range jobs {
		unit := strings.Fields(job.Unit.format(0))[1]
		throughput.add(append(b.suiteRow(of, job, "%.0f", job.Unit), unit)...)
		latency.addIfMeasured(b.suiteRow(of, job, "%.1f", p50, p99)...)
		cpu.addIfMeasured(b.suiteRow(of, job, "%.2f", cpuPerOp, cpuPerGiB)...)
		flush.addIfMeasured(b.suiteRow(of, job, "%.0f", flushP50, flushP99, flushMax)...)
	}
	for _, t := range []struct {
		table
		title string
	}{
		{throughput, ""},
		{latency, "latency, p50 / p99, µs"},
		{cpu, "processor time of the server, µs for a request (s for a million) / s for a GiB"},
		{flush, "latency of a flush, p50 / p99 / the slowest, µs"},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if t.title != "" {
			fmt.Fprintf(w, "\n### %s: %s\n\n", of.title, t.title)
		}
		t.write(w)
	}
}

// suiteRow is a job's name and then, for each peer, the medians of the metrics.
func (b *bench) suiteRow(of *suite, job jobEntry, format string, metrics ...metric) []string {
	row := []string{strings.TrimPrefix(job.Name, of.name+" ")}
	for _, p := range of.peers {
		row = append(row, b.cell(job.Name, p.name, format, metrics...))
	}
	return row
}

// cell is the medians of some metrics with " / " between; "" if there are none.
func (b *bench) cell(job, peer, format string, of ...metric) string {
	var parts []string
	for _, m := range of {
		if v := b.median(job, peer, m); !math.IsNaN(v) {
			parts = append(parts, fmt.Sprintf(format, v))
		}
	}
	if len(parts) > 0 {
		return strings.Join(parts, " / ")
	}
	return b.absence(job, peer)
}

// absence says in a word why a peer has no figure: missing, failed, or "" where
// it has nothing to tell.
func (b *bench) absence(job, peer string) string {
	of := func(g gap) bool {
		return g.Peer == peer && (g.Job == "" || g.Job == job || g.Job == "start" || g.Job == "fill")
	}
	switch {
	case slices.ContainsFunc(b.Missing, of):
		return "missing"
	case slices.ContainsFunc(b.Failures, of):
		return "failed"
	}
	return ""
}

func (b *bench) reportBackups(w io.Writer) {
	for _, s := range stages {
		if !slices.ContainsFunc(b.Jobs, func(j jobEntry) bool { return j.Name == s.name }) {
			continue
		}
		t := table{heads: []string{"peer", "wall s", "MiB/s", "CPU s", "peak RSS MiB", "added MB", "x changed", "objects added", "requests"}}
		for _, p := range backupPeers {
			t.add(p.name,
				b.cell(s.name, p.name, "%.2f", wall),
				b.scaled(s.name, p.name, wall, func(v float64) float64 { return float64(b.image) / (1 << 20) / v }),
				b.cell(s.name, p.name, "%.2f", cpuSeconds),
				b.scaled(s.name, p.name, rss, func(v float64) float64 { return v / (1 << 20) }),
				b.scaled(s.name, p.name, added, func(v float64) float64 { return v / 1e6 }),
				b.cell(s.name, p.name, "%.2f", perChanged),
				b.cell(s.name, p.name, "%.0f", objects),
				b.cell(s.name, p.name, "%.0f", requests))
		}
		fmt.Fprintf(w, "\n### %s: %s\n\n", s.name, s.what)
		t.write(w)
	}
}

func (b *bench) scaled(job, peer string, m metric, scale func(float64) float64) string {
	if v := b.median(job, peer, m); !math.IsNaN(v) {
		return fmt.Sprintf("%.1f", scale(v))
	}
	return b.absence(job, peer)
}

// reportBars prints the ratios that have a bar.
func (b *bench) reportBars(w io.Writer) {
	t := table{heads: []string{"job", "figure", "of", "against", "times better", "first version", "goal"}}
	for _, job := range b.Jobs {
		for _, bar := range job.bars {
			ratio := b.ratio(job.Name, bar)
			times := "not measured"
			if !math.IsNaN(ratio) {
				times = fmt.Sprintf("%.2f", ratio)
			}
			t.add(job.Name, string(bar.metric), bar.ours, bar.peer, times, verdict(ratio, bar.first), verdict(ratio, bar.goal))
		}
	}
	if len(t.rows) == 0 {
		return
	}
	fmt.Fprint(w, "\n### Bars\n\nTimes better than the peer, median of the rounds' ratios; the bars are what it should at least be.\n\n")
	t.write(w)
}

// verdict shows a bar and, if there is a ratio, whether that reaches it.
func verdict(ratio, bar float64) string {
	switch {
	case bar == 0:
		return ""
	case math.IsNaN(ratio):
		return fmt.Sprintf("%.2f", bar)
	case ratio >= bar:
		return fmt.Sprintf("%.2f reached", bar)
	}
	return fmt.Sprintf("**%.2f missed**", bar)
}

func reportGaps(w io.Writer, title string, gaps []gap) {
	if len(gaps) == 0 {
		return
	}
	fmt.Fprintf(w, "\n### %s\n\n", title)
	for _, g := range gaps {
		where := g.Peer
		if g.Job != "" {
			where = fmt.Sprintf("%s, %s, round %d", g.Peer, g.Job, g.Round+1)
		}
		fmt.Fprintf(w, "- %s: %s\n", where, g.Reason)
	}
}

// A table is Markdown in the making. Rows with nothing beyond their first cell
// are left out.
type table struct {
	heads []string
	rows  [][]string
}

func (t *table) add(cells ...string) {
	if slices.ContainsFunc(cells[1:], func(c string) bool { return c != "" }) {
		t.rows = append(t.rows, cells)
	}
}

// addIfMeasured adds a row that has at least one figure, and not only words
// that say why there is none.
func (t *table) addIfMeasured(cells ...string) {
	if slices.ContainsFunc(cells[1:], func(c string) bool { return strings.ContainsAny(c, "0123456789") }) {
		t.add(cells...)
	}
}

func (t *table) write(w io.Writer) {
	fmt.Fprintf(w, "| %s |\n|---%s|\n", strings.Join(t.heads, " | "), strings.Repeat("|---:", len(t.heads)-1))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}
