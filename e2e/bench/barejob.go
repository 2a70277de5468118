package main

import "fmt"

// bareJobs are the jobs of servers with little behind them: every depth, one
// connection or four, and three lengths of requests, from our own client; a part
// of that from fio; and nbdcopy.
func bareJobs(of string, peers []nbdPeer) []nbdJob {
	var jobs []nbdJob
	for _, op := range []string{"read", "write"} {
		for _, block := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, depth := range []int{1, 16, 64} {
				for _, conns := range []int{1, 4} {
					jobs = append(jobs, bareJob(of, peers, op, block, depth, conns))
				}
			}
		}
		for _, job := range []nbdJob{
			{block: 4 << 10, depth: 1}, {block: 4 << 10, depth: 16}, {block: 4 << 10, depth: 64},
			{block: 4 << 10, depth: 16, conns: 4}, {block: 64 << 10, depth: 16}, {block: 1 << 20, depth: 16},
		} {
			job.name = "fio " + pattern(op, job.block, job.depth, job.conns)
			job.rw, job.writes, job.unit = "rand"+op, op == "write", unitOf(job.block)
			job.fullOnly = job.block != 4<<10 || job.depth == 16
			jobs = append(jobs, job)
		}
	}
	return append(jobs,
		nbdJob{name: "nbdcopy out", client: useCopyOut, unit: mibPerSecond},
		nbdJob{name: "nbdcopy in", client: useCopyIn, writes: true, unit: mibPerSecond})
}

// bareJob is one job of our own client.
func bareJob(of string, peers []nbdPeer, op string, block, depth, conns int) nbdJob {
	job := nbdJob{name: pattern(op, block, depth, conns), client: useBatch, rw: "rand" + op, block: block, depth: depth, conns: conns,
		writes: op == "write", unit: unitOf(block)}
	switch {
	case conns > 1:
		job.fullOnly = block != 4<<10 || depth != 16
	case block > 4<<10:
		job.fullOnly = depth != 16
	}
	if block == 4<<10 && conns == 1 {
		job.bars = bareBars(of, peers, depth)
	}
	return job
}

// bareBars are the goals of requests of 4 KiB on one connection: beside a
// device that does nothing so many times the requests, as fast an answer where
// one is in flight, and everywhere less processor time than any other server.
// Layers and memory are other things to serve.
func bareBars(of string, peers []nbdPeer, depth int) (bars []bar) {
	if of == "null" {
		switch depth {
		case 1:
			bars = append(bars, bar{metric: p50, ours: "varve null", peer: "nbdkit null", goal: 0.95})
		case 16:
			bars = append(bars, bar{metric: iops, ours: "varve null", peer: "nbdkit null", goal: 2})
		case 64:
			bars = append(bars, bar{metric: iops, ours: "varve null", peer: "nbdkit null", goal: 3}, bar{metric: iops, ours: "varve null", peer: "go-nbd null", goal: 3})
		}
	}
	for _, p := range peers[1:] {
		if p.layers == 0 && !p.memory {
			bars = append(bars, bar{metric: cpuPerOp, ours: peers[0].name, peer: p.name, goal: 1})
		}
	}
	return bars
}

// tlsJobs are fewer: what encryption costs shows with long requests, and what
// records cost with short ones.
func tlsJobs() []nbdJob {
	var jobs []nbdJob
	for _, op := range []string{"read", "write"} {
		for _, job := range []nbdJob{
			bareJob("tls", tlsPeers, op, 4<<10, 1, 1), bareJob("tls", tlsPeers, op, 4<<10, 16, 1), bareJob("tls", tlsPeers, op, 4<<10, 64, 1),
			bareJob("tls", tlsPeers, op, 64<<10, 16, 1), bareJob("tls", tlsPeers, op, 1<<20, 16, 1), bareJob("tls", tlsPeers, op, 1<<20, 16, 4),
		} {
			job.fullOnly = job.fullOnly || job.depth == 1
			jobs = append(jobs, job)
		}
	}
	return append(jobs, nbdJob{name: "nbdcopy out", client: useCopyOut, unit: mibPerSecond})
}

// pattern is the name of a pattern of requests.
func pattern(op string, block, depth, conns int) string {
	name := fmt.Sprintf("%s %s qd%d", byteSize(block), op, depth)
	if conns > 1 {
		name += fmt.Sprintf(" %d conn", conns)
	}
	return name
}

// unitOf is the figure to look at for requests of a length.
func unitOf(block int) metric {
	if block > 4<<10 {
		return mibPerSecond
	}
	return iops
}
