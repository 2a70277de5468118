package main

import (
	"math/bits"
	"time"
)

// A histogram counts durations in buckets whose width is at most 1/32 of their
// value, up to about an hour. The zero value is empty.
type histogram struct {
	counts [42 * subBuckets]int64
	total  int64
}

const (
	subBits    = 5
	subBuckets = 1 << subBits // to each power of two
)

// bucket is the index of a duration's bucket. The first subBuckets buckets are
// one nanosecond wide.
func bucket(d time.Duration) int {
	ns := uint64(max(d, 0))
	shift := max(0, bits.Len64(ns)-subBits-1)
	return shift*subBuckets + int(ns>>shift)
}

// floor is the least duration that falls in bucket i.
func floor(i int) time.Duration {
	if i < 2*subBuckets {
		return time.Duration(i)
	}
	shift := i/subBuckets - 1
	return time.Duration(i-shift*subBuckets) << shift
}

func (h *histogram) add(d time.Duration) {
	h.counts[min(bucket(d), len(h.counts)-1)]++
	h.total++
}

// merge adds all that was added to o.
func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// quantile is the duration below or at which the share q of what was added
// lies, 0 < q <= 1; 0 if nothing was added.
func (h *histogram) quantile(q float64) time.Duration {
	want, seen := q*float64(h.total), int64(0)
	for i, count := range h.counts {
		seen += count
		if seen > 0 && float64(seen) >= want {
			return floor(i)
		}
	}
	return 0
}
