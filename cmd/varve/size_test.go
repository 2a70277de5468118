package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want int64 // 0: refused
	}{
		{"10G", 10 << 30}, {"10GiB", 10 << 30}, {"10g", 10 << 30}, {"512M", 512 << 20},
		{"1T", 1 << 40}, {"1PiB", 1 << 50}, {"4k", 4096}, {"4096B", 4096}, {"1B", 1},
		{"1048576", 1 << 20}, {"1048575", 0}, {"4096", 0}, {"20", 0}, {"1", 0},
		{"0", 0}, {"0G", 0}, {"", 0}, {"G", 0}, {"-1G", 0}, {"+1G", 0}, {"1.5G", 0}, {"1 G", 0}, {" 1G", 0},
		{"10GB", 0}, {"10kb", 0}, {"10X", 0}, {"1e9", 0}, {"0x10", 0}, {"1_000", 0}, {"1,5G", 0},
		{"9223372036854775807", 1<<63 - 1}, {"9223372036854775808", 0}, {"8192P", 0}, {"8191P", 8191 << 50},
		{"٣G", 0}, {"10G\n", 0},
	}
	for _, tt := range tests {
		got, err := parseSize(tt.in)
		if (err == nil) != (tt.want != 0) || got != tt.want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", tt.in, got, err, tt.want)
		}
	}
}

// What is wrong with a unit is said of that unit.
func TestParseSizeErrors(t *testing.T) {
	for in, want := range map[string]string{
		"16EiB": `unknown unit "EiB"`, "16E": `unknown unit "E"`, "10GB": "decimal units", "10mb": "decimal units", "10Zb": `unknown unit "Zb"`,
	} {
		if _, err := parseSize(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSize(%q): %v, want %s", in, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("10GiB")
	f.Add("99999999999999999999P")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n < 1 {
			t.Errorf("parseSize(%q) = %d without an error", s, n)
		}
	})
}

// Sizes shown in GiB are whole numbers, rounded up.
func TestWholeGiB(t *testing.T) {
	for n, want := range map[int64]int64{0: 0, 1: 1, 1 << 30: 1, 1<<30 + 1: 2, 20 << 30: 20, 1<<63 - 1: 1 << 33} {
		if got := wholeGiB(n); got != want {
			t.Errorf("wholeGiB(%d) = %d, want %d", n, got, want)
		}
	}
}

func TestFormatTime(t *testing.T) {
	at := time.Date(2026, 2, 26, 13, 20, 41, 0, time.FixedZone("", 3600))
	if got, want := formatTime(at), any("2026-02-26T12:20:41.000000"); got != want {
		t.Errorf("formatTime(%v) = %v, want %v", at, got, want)
	}
	if got := formatTime(time.Time{}); got != nil {
		t.Errorf("formatTime of no time = %v, want nil", got)
	}
}

func TestFormatBytesAndDuration(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB", 1 << 50: "1.0 PiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0:00", 61 * time.Second: "1:01", 3723 * time.Second: "1:02:03"} {
		if got := formatDuration(d); got != want {
			t.Errorf("formatDuration(%v) = %q, want %q", d, got, want)
		}
	}
}
