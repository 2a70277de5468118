package main

import (
	"fmt"
	"strconv"
	"strings"
)

// A byteSize is a count of bytes that reads from the command line as a number
// with an optional binary suffix: 512M, 2G.
type byteSize int64

var suffixes = map[string]int64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

func (s byteSize) String() string {
	for _, suffix := range []string{"T", "G", "M", "K"} {
		if unit := suffixes[suffix]; s != 0 && int64(s)%unit == 0 {
			return strconv.FormatInt(int64(s)/unit, 10) + suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Set implements flag.Value.
func (s *byteSize) Set(text string) error {
	digits := strings.TrimRight(text, "KMGT")
	unit, ok := suffixes[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n <= 0 || n > (1<<62)/unit {
		return fmt.Errorf("want a size such as 512M or 2G, not %q", text)
	}
	*s = byteSize(n * unit)
	return nil
}
