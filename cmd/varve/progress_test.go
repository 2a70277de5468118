package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// C1: a bar with rate and time left on a terminal, a line now and then
// elsewhere.
func TestProgress(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			p := newProgress(&out, "backup create", terminal)
			for i := range int64(101) {
				p.update(i<<20, 100<<20)
				time.Sleep(250 * time.Millisecond)
			}
			p.finish()
			got := out.String()
			if terminal {
				lines := strings.Split(got, "\r")
				if len(lines) < 90 || !strings.Contains(got, "[##############--------------]   50%  50.0 MiB of 100.0 MiB  4.0 MiB/s  0:13 left") {
					t.Errorf("bar: %d updates, last of them %q", len(lines), lines[len(lines)-3])
				}
				if !strings.HasSuffix(got, " \r") {
					t.Errorf("the bar is not wiped: %q", got[len(got)-20:])
				}
				return
			}
			want := "backup create   40%  40.0 MiB of 100.0 MiB  4.0 MiB/s  0:15 left\n" +
				"backup create   80%  80.0 MiB of 100.0 MiB  4.0 MiB/s  0:05 left\n"
			if got != want {
				t.Errorf("lines:\n%swant\n%s", got, want)
			}
		})
	}
}

func TestProgressOddNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, "x", false)
		for _, n := range [][2]int64{{0, 0}, {-1, 10}, {20, 10}, {5, 0}, {1 << 62, 1<<63 - 1}, {0, 1<<63 - 1}} {
			time.Sleep(reportEvery)
			p.update(n[0], n[1])
		}
		if lines := strings.Count(out.String(), "\n"); lines != 6 {
			t.Errorf("%d lines, want 6: %s", lines, out.String())
		}
	})
}
