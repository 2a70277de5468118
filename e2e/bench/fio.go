package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// fio runs an NBD job with fio and returns its figures and the number of
// requests.
func (b *bench) fio(ctx context.Context, seconds float64, job nbdJob, uri string, seed uint64) (metrics, int64, error) {
	args := []string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--output-format=json", "--thread", "--group_reporting",
		"--time_based", fmt.Sprintf("--runtime=%dms", int(seconds*1000)), "--norandommap", "--random_generator=tausworthe64",
		fmt.Sprintf("--randseed=%d", seed+1), "--rw=" + job.rw, fmt.Sprintf("--bs=%d", job.block),
		fmt.Sprintf("--iodepth=%d", job.depth), fmt.Sprintf("--numjobs=%d", max(job.conns, 1))}
	if job.flushEvery > 0 {
		args = append(args, fmt.Sprintf("--fsync=%d", job.flushEvery))
	}
	var out bytes.Buffer
	if _, err := (task{stdout: &out}).run(ctx, "fio", args...); err != nil {
		return nil, 0, err
	}
	return parseFio(out.Bytes())
}

// fioSide is one direction of a job in fio's JSON: fio manual, "JSON output".
type fioSide struct {
	Total int64   `json:"total_ios"`
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bw_bytes"` // a second
	Clat  fioLatency
	Lat   fioLatency
}

type fioLatency struct {
	Percentile map[string]float64 `json:"percentile"` // nanoseconds
	Max        float64            `json:"max"`        // nanoseconds
}

// UnmarshalJSON reads the fields whose names hold their unit.
func (s *fioSide) UnmarshalJSON(raw []byte) error {
	type plain fioSide // without this method
	aux := struct {
		*plain
		Clat *fioLatency `json:"clat_ns"`
		Lat  *fioLatency `json:"lat_ns"`
	}{plain: (*plain)(s), Clat: &s.Clat, Lat: &s.Lat}
	return json.Unmarshal(raw, &aux)
}

func parseFio(raw []byte) (metrics, int64, error) {
	start := bytes.IndexByte(raw, '{') // notes may come before the JSON
	if start < 0 {
		return nil, 0, fmt.Errorf("fio printed no JSON: %q", raw)
	}
	var report struct {
		Jobs []struct {
			Error             int `json:"error"`
			Read, Write, Sync fioSide
		} `json:"jobs"`
	}
	if err := json.Unmarshal(raw[start:], &report); err != nil {
		return nil, 0, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return nil, 0, fmt.Errorf("fio's JSON shows %d jobs, one is wanted, without error: %+v", len(report.Jobs), report.Jobs)
	}
	job := report.Jobs[0]
	side := job.Read
	if job.Write.Total > 0 {
		side = job.Write
	}
	if side.Total == 0 {
		return nil, 0, fmt.Errorf("fio completed no request")
	}
	m := metrics{
		iops:         side.IOPS,
		mibPerSecond: side.Bytes / (1 << 20),
		p50:          side.Clat.Percentile["50.000000"] / 1000,
		p99:          side.Clat.Percentile["99.000000"] / 1000,
	}
	if job.Sync.Total > 0 {
		m[flushP50] = job.Sync.Lat.Percentile["50.000000"] / 1000
		m[flushP99] = job.Sync.Lat.Percentile["99.000000"] / 1000
		m[flushMax] = job.Sync.Lat.Max / 1000
	}
	return m, side.Total + job.Sync.Total, nil
}
