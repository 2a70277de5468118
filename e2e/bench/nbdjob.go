package main

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
	sparse     bool   // of nbdcopy: whether it may ask what is zero, and leave it out
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
	{name: "nbdcopy out", client: useCopyOut, sparse: true, unit: mibPerSecond, bars: versus(mibPerSecond, 1.5, 0.95)},
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
	{name: "nbdcopy in", client: useCopyIn, sparse: true, writes: true, unit: mibPerSecond, bars: versus(mibPerSecond, 1.2, 0.9)},
}
