package main

import (
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestHistogramKeepsDurationsWithinAThirtySecond(t *testing.T) {
	for d := time.Duration(1); d < time.Hour; d += d/7 + 1 {
		low := floor(bucket(d))
		if low > d || float64(d-low) > float64(d)/32 {
			t.Fatalf("duration %d falls in a bucket that begins at %d", d, low)
		}
	}
}

func TestHistogramQuantile(t *testing.T) {
	var h histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("median of nothing = %v, want 0", got)
	}
	for ns := range 60 {
		h.add(time.Duration(ns))
	}
	for _, tt := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 29}, {0.99, 59}, {1, 59}} {
		if got := h.quantile(tt.q); got != tt.want {
			t.Errorf("quantile(%v) of 0..59 ns = %v, want %v", tt.q, got, tt.want)
		}
	}
	h.add(-time.Second)
	h.add(1000 * time.Hour) // both must land somewhere
}

func TestByteSize(t *testing.T) {
	for _, tt := range []struct {
		text string
		want byteSize // 0 if refused
	}{{"1", 1}, {"4K", 4096}, {"512M", 512 << 20}, {"2G", 2 << 30}, {"", 0}, {"-1G", 0}, {"0", 0}, {"2X", 0}, {"2GG", 0}, {"9999999999T", 0}} {
		var got byteSize
		if err := got.Set(tt.text); (err == nil) != (tt.want > 0) || got != tt.want {
			t.Errorf("Set(%q) = %d, %v; want %d", tt.text, got, err, tt.want)
		}
		if tt.want > 0 && got.String() != tt.text && tt.text != "4K" {
			t.Errorf("String of %q = %q", tt.text, got)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-quick", "-only", "rand", "-rounds", "7"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if o.volume != 1<<30 || o.image != 2<<30 || o.roundsOr(2, 3) != 7 || wants(o.only, "nbdcopy in") || !wants(o.only, "4k randread qd1") {
		t.Errorf("options are %+v", o)
	}
	for _, bad := range [][]string{{"-only", "("}, {"-peers", "["}, {"-rounds", "-1"}, {"-volume", "1M"}, {"-image", "100000001"}, {"-seconds", "0.01"}, {"stray"}} {
		if _, err := parseOptions(bad, t.Output()); err == nil {
			t.Errorf("options %q are accepted", bad)
		}
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 9 9 20 0 1 0 5"))
	if want := 1750 * time.Millisecond; err != nil || got != want {
		t.Errorf("processor time = %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 1 2 3 4 x 25 9"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestTreeTimeCountsChildren that live and that have ended.
func TestTreeTimeCountsChildren(t *testing.T) {
	before, err := treeTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; read x")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	out.Read(make([]byte, 5)) // it has worked, and waits
	its, err := cpuTime(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	during, err := treeTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	child.Wait() // its end of file is no success
	after, err := treeTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if its == 0 || during-before < its || after < during {
		t.Errorf("a child took %v; with it %v, then %v, then %v", its, before, during, after)
	}
}

func TestParseFio(t *testing.T) {
	const report = `fio: a note
{"jobs": [{"error": 0,
 "read": {"total_ios": 0, "iops": 0, "bw_bytes": 0, "clat_ns": {}},
 "write": {"total_ios": 64, "iops": 1000.5, "bw_bytes": 4096000, "clat_ns": {"percentile": {"50.000000": 2000, "99.000000": 3000}}},
 "sync": {"total_ios": 2, "lat_ns": {"percentile": {"50.000000": 40000, "99.000000": 50000}, "max": 60000}}}]}`
	m, requests, err := parseFio([]byte(report))
	if err != nil {
		t.Fatal(err)
	}
	want := metrics{iops: 1000.5, mibPerSecond: 3.90625, p50: 2, p99: 3, flushP50: 40, flushP99: 50, flushMax: 60}
	for name, v := range want {
		if m[name] != v {
			t.Errorf("%s = %v, want %v", name, m[name], v)
		}
	}
	if requests != 66 {
		t.Errorf("requests = %d, want 66", requests)
	}
	for _, bad := range []string{"", "{", `{"jobs": []}`, `{"jobs": [{"error": 5, "read": {"total_ios": 1}}]}`, `{"jobs": [{"read": {"total_ios": 0}}]}`} {
		if _, _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("report %q is accepted", bad)
		}
	}
}

func TestChangesAreOnePercentInsideAndDisjoint(t *testing.T) {
	for name, change := range map[string]func(int64, uint64) []run{"scattered": scattered, "clustered": clustered} {
		for _, size := range []int64{64 << 20, 1 << 30} {
			runs := change(size, 9)
			if got, want := total(runs), size/blockSize/100*blockSize; got != want {
				t.Errorf("%s of %d bytes changes %d, want %d", name, size, got, want)
			}
			seen := map[int64]bool{}
			for _, r := range runs {
				if r.off < 0 || r.off+r.n > size || r.off%blockSize != 0 {
					t.Fatalf("%s of %d bytes has the run %+v", name, size, r)
				}
				for at := r.off; at < r.off+r.n; at += blockSize {
					if seen[at] {
						t.Fatalf("%s of %d bytes changes the block at %d twice", name, size, at)
					}
					seen[at] = true
				}
			}
		}
	}
}

// TestRatio pairs within rounds: load that halves both sides in one round
// leaves the ratio alone.
func TestRatio(t *testing.T) {
	var r results
	for round, v := range []struct{ ours, peer, oursWall, peerWall float64 }{{200, 100, 1, 4}, {100, 50, 2, 8}, {300, 100, 1, 3}} {
		r.addSample(sample{Job: "j", Peer: "a", Round: round, Metrics: metrics{iops: v.ours, wall: v.oursWall}})
		r.addSample(sample{Job: "j", Peer: "b", Round: round, Metrics: metrics{iops: v.peer, wall: v.peerWall}})
	}
	if got := r.ratio("j", bar{metric: iops, ours: "a", peer: "b"}); got != 2 {
		t.Errorf("ratio of IOPS = %v, want 2", got)
	}
	if got := r.ratio("j", bar{metric: wall, ours: "a", peer: "b"}); got != 4 {
		t.Errorf("ratio of time = %v, want 4: less is better", got)
	}
	if got := r.ratio("j", bar{metric: iops, ours: "a", peer: "c"}); !math.IsNaN(got) {
		t.Errorf("ratio to a peer without samples = %v, want NaN", got)
	}
	if got := r.median("j", "a", iops); got != 200 {
		t.Errorf("median = %v, want 200", got)
	}
}

// TestReportNamesWhatIsAbsent: a peer that is missing or that failed is shown
// as such in its cells and with its reason below.
func TestReportNamesWhatIsAbsent(t *testing.T) {
	b := &bench{}
	job := nbdJobList[0]
	b.addJob("nbd", job.name, job.unit, job.bars)
	b.addSample(sample{Job: job.name, Peer: "raw", Metrics: metrics{iops: 12345, p50: 1}})
	if b.has("qcow2", []string{"no-such-program-at-all"}) {
		t.Fatal("a program that is not there is found")
	}
	b.fail(job.name, "nbdkit", 0, errRefused)
	var out strings.Builder
	b.report(&out)
	for _, want := range []string{
		"| 4k randread qd1 |  |  | missing |  | 12345 | failed | IOPS |",
		"- qcow2: program no-such-program-at-all not found",
		"- nbdkit, 4k randread qd1, round 1: refused by the test",
		"not measured",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &out)
		}
	}
}
