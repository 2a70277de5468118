package repo

import (
	"cmp"
	"slices"
)

// A Range is a part of a volume, in bytes.
type Range struct{ Off, Len int64 }

// JoinRanges sorts ranges and joins those that meet, in place.
func JoinRanges(ranges []Range) []Range {
	slices.SortFunc(ranges, func(x, y Range) int { return cmp.Compare(x.Off, y.Off) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && r.Off <= out[n-1].Off+out[n-1].Len {
			last := &out[n-1]
			last.Len = max(last.Len, r.Off+r.Len-last.Off)
			continue
		}
		out = append(out, r)
	}
	return out
}
