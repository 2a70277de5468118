package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
	pib = 1 << 50
)

// Sizes are binary, as OpenStack's gigabytes are: G and GiB are both 2^30.
var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"k": kib, "kib": kib,
	"m": mib, "mib": mib,
	"g": gib, "gib": gib,
	"t": tib, "tib": tib,
	"p": pib, "pib": pib,
}

// leastBare is the smallest size that may be given without a unit, in bytes.
const leastBare = mib

// parseSize reads a size in bytes: a whole number and a unit, "10G", "10GiB",
// "512M", "1048576", in any case. Decimal units (GB) are refused rather than
// guessed at, and so are fractions, signs and spaces, and a small number
// without a unit: where OpenStack is spoken, 10 is ten gibibytes. The size is at
// least 1.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, known := sizeUnits[strings.ToLower(s[len(digits):])]
	switch {
	case s == "":
		return 0, usagef("size is empty: give a number and a unit, such as 10G")
	case !known && slices.Contains([]string{"kb", "mb", "gb", "tb", "pb", "eb"}, strings.ToLower(s[len(digits):])):
		return 0, usagef("size %q: decimal units are not known: use K, M, G, T (or KiB, MiB, GiB, TiB)", s)
	case !known:
		return 0, usagef("size %q: unknown unit %q: use K, M, G, T, P (or KiB, MiB, GiB, TiB, PiB)", s, s[len(digits):])
	case strings.Trim(digits, "0123456789") != "" || digits == "":
		return 0, usagef("size %q: not a whole number with a unit, such as 10G or 512M", s)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > (1<<63-1)/unit {
		return 0, usagef("size %q: too large", s)
	}
	if n == 0 {
		return 0, usagef("size %q: a volume cannot be empty: give at least 4K", s)
	}
	if s == digits && n < leastBare {
		return 0, usagef("size %q: say in what: %sG for gibibytes, %sB for bytes", s, s, s)
	}
	return n * unit, nil
}

// wholeGiB is n in GiB, rounded up, as OpenStack shows sizes.
func wholeGiB(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return (n-1)/gib + 1
}

// formatBytes is n for people, with one decimal and a binary unit.
func formatBytes(n int64) string {
	units := []struct {
		size int64
		name string
	}{{pib, "PiB"}, {tib, "TiB"}, {gib, "GiB"}, {mib, "MiB"}, {kib, "KiB"}}
	for _, u := range units {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// formatTime is t as OpenStack writes it, in UTC without a zone, or nil (None)
// for the zero time.
func formatTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000")
}

// formatDuration is d for people: 0:07, 12:34, 1:02:03.
func formatDuration(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
