package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// reportMounts prints a table for each step that was taken with the mounts.
func (b *bench) reportMounts(w io.Writer) {
	for i, s := range mountSteps {
		if !slices.ContainsFunc(b.Jobs, func(j jobEntry) bool { return j.Name == s.job() }) {
			continue
		}
		fmt.Fprintf(w, "\n### %s: %s\n\n", s.job(), s.what)
		if i == 0 {
			for _, p := range mountPeers {
				fmt.Fprintf(w, "- %s: %s\n", p.name, p.what)
			}
			fmt.Fprintln(w)
		}
		t := table{heads: []string{"peer"}}
		for _, c := range s.columns {
			t.heads = append(t.heads, c.head)
		}
		for _, p := range mountPeers {
			row := []string{p.name}
			for _, c := range s.columns {
				row = append(row, b.mountCell(s.job(), p.name, c))
			}
			t.add(row...)
		}
		t.write(w)
	}
}

func (b *bench) mountCell(job, peer string, c mountColumn) string {
	if v := b.median(job, peer, c.of); !math.IsNaN(v) {
		return fmt.Sprintf(c.format, v/c.unit)
	}
	return b.absence(job, peer)
}
