package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	barWidth    = 28
	redrawEvery = 200 * time.Millisecond // on a terminal
	reportEvery = 10 * time.Second       // elsewhere
	rateWindow  = 5 * time.Second        // that the shown rate is the mean of
)

// progress shows how far an operation is: a line that is drawn over on a
// terminal, a new line now and then elsewhere. It is not safe for concurrent
// use.
type progress struct {
	w        io.Writer
	label    string
	terminal bool
	now      func() time.Time

	started, drawn, sampled time.Time
	sampledDone             int64
	rate                    float64 // bytes a second, smoothed; 0: not known yet
	width                   int     // of the line on the terminal, to wipe it
}

func newProgress(w io.Writer, label string, terminal bool) *progress {
	p := &progress{w: w, label: label, terminal: terminal, now: time.Now}
	p.started = p.now()
	p.drawn, p.sampled = p.started, p.started
	return p
}

// update takes the bytes that are done, of total; total is 0 as long as it is
// not known.
func (p *progress) update(done, total int64) {
	now := p.now()
	p.sample(now, done)
	every := reportEvery
	if p.terminal {
		every = redrawEvery
	}
	if now.Sub(p.drawn) < every {
		return
	}
	p.drawn = now
	line := p.line(done, total, now)
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	wipe := max(0, p.width-textWidth(line))
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", wipe))
	p.width = textWidth(line)
}

// finish wipes the line off a terminal, for what is printed next.
func (p *progress) finish() {
	if p.terminal && p.width > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}

// sample moves the rate towards what was done since the last sample. At first
// it is the mean since the start, later the mean of about the last
// rateWindow.
func (p *progress) sample(now time.Time, done int64) {
	passed := now.Sub(p.sampled)
	if passed < redrawEvery {
		return
	}
	current := float64(max(0, done-p.sampledDone)) / passed.Seconds()
	window := min(now.Sub(p.started), rateWindow)
	p.rate += (current - p.rate) * min(1, passed.Seconds()/window.Seconds())
	p.sampled, p.sampledDone = now, done
}

func (p *progress) line(done, total int64, now time.Time) string {
	rate := formatBytes(int64(p.rate)) + "/s"
	if total <= 0 {
		return fmt.Sprintf("%s  %s  %s  %s", p.label, formatBytes(done), rate, formatDuration(now.Sub(p.started)))
	}
	done = min(max(done, 0), total)
	left := "-:--"
	if p.rate >= 1 {
		if seconds := float64(total-done) / p.rate; seconds < 1e6 {
			left = formatDuration(time.Duration(seconds * float64(time.Second)))
		}
	}
	share := float64(done) / float64(total)
	line := fmt.Sprintf("%3d%%  %s of %s  %s  %s left", int(share*100), formatBytes(done), formatBytes(total), rate, left)
	if !p.terminal {
		return p.label + "  " + line
	}
	filled := int(share * barWidth)
	return fmt.Sprintf("%s  [%s%s]  %s", p.label, strings.Repeat("#", filled), strings.Repeat("-", barWidth-filled), line)
}
