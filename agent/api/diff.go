package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"varve/layers"
)

// An Extent is a range that may differ between two snapshots, or two backups.
type Extent struct {
	Offset int64  `json:"offset" doc:"bytes"`
	Length int64  `json:"length" doc:"bytes"`
	Kind   string `json:"kind" enum:"data,zero" doc:"what the second one reads there"`
}

// A diffLine is one line of a diff: an extent, or the end of all, with the
// reason if that came early. A diff without an end is cut off.
type diffLine struct {
	*Extent
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

func (s *Server) addDiff(h huma.API) {
	describe := func(what string) func(o *huma.Operation) {
		return func(o *huma.Operation) {
			o.Summary = "What may differ between two " + what + " of a volume: lines of JSON, an extent each"
			o.Responses = map[string]*huma.Response{"200": {
				Description: `An extent a line, in ascending order; last {"end": true}, with "error" if it came early`,
				Content:     map[string]*huma.MediaType{"application/x-ndjson": {}},
			}}
		}
	}
	huma.Get(h, "/v1/snapshots/{snapshot}/diff/{other}", func(ctx context.Context, in *struct {
		Snapshot string `path:"snapshot" doc:"id, name, or VOLUME@SNAPSHOT"`
		Other    string `path:"other" doc:"another of the same volume; its name alone will do"`
	}) (*huma.StreamResponse, error) {
		d, err := s.config.Agent.DiffSnapshots(ctx, in.Snapshot, in.Other)
		if err != nil {
			return nil, answerFor(err)
		}
		return streamDiff(d.Extents(), d.Close), nil
	}, describe("snapshots"))
	huma.Get(h, "/v1/backups/{backup}/diff/{other}", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
		Other  string `path:"other" doc:"another of the same volume in the same target"`
	}) (*huma.StreamResponse, error) {
		d, err := s.config.Agent.DiffBackups(ctx, in.Backup, in.Other)
		if err != nil {
			return nil, answerFor(err)
		}
		return streamDiff(d.Extents(ctx), d.Close), nil
	}, describe("backups"))
}

// streamDiff answers with extents as they come.
func streamDiff(extents iter.Seq2[layers.Extent, error], end func() error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer end() // Nothing was written.
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "application/x-ndjson")
		out := bufio.NewWriterSize(w, 64<<10)
		writeDiff(hc.Context(), json.NewEncoder(out), extents)
		out.Flush() // It fails if the client is gone, and then nobody cares.
	}}
}

func writeDiff(ctx context.Context, lines *json.Encoder, extents iter.Seq2[layers.Extent, error]) {
	end := diffLine{End: true}
	for e, err := range extents {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			end.Error = err.Error()
			break
		}
		shown := DescribeExtent(e)
		if lines.Encode(diffLine{Extent: &shown}) != nil {
			return // the client is gone
		}
	}
	lines.Encode(end) // As above.
}

// DescribeExtent is an extent of a diff as the API shows it.
func DescribeExtent(e layers.Extent) Extent {
	kind := "data"
	if e.Kind == layers.Zero {
		kind = "zero"
	}
	return Extent{e.Off, e.Len, kind}
}

// DiffSnapshots yields what may differ between two snapshots of a volume, as
// it comes. An error ends the sequence.
func (c *Client) DiffSnapshots(ctx context.Context, from, to string) iter.Seq2[Extent, error] {
	return c.diff(ctx, "snapshot", from, to)
}

// DiffBackups is DiffSnapshots for two backups.
func (c *Client) DiffBackups(ctx context.Context, from, to string) iter.Seq2[Extent, error] {
	return c.diff(ctx, "backup", from, to)
}

func (c *Client) diff(ctx context.Context, kind, from, to string) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, name := range []string{from, to} {
			if _, err := ref(kind, name); err != nil {
				yield(Extent{}, err)
				return
			}
		}
		answer, err := c.send(ctx, http.MethodGet, path(kind+"s", from, "diff", to), nil)
		if err != nil {
			yield(Extent{}, err)
			return
		}
		defer answer.Body.Close()
		for lines := json.NewDecoder(answer.Body); ; {
			var l diffLine
			switch err := lines.Decode(&l); {
			case err != nil && ctx.Err() != nil:
				yield(Extent{}, ctx.Err())
			case err != nil:
				yield(Extent{}, fmt.Errorf("the daemon broke off the diff of %s and %s: %w", from, to, err))
			case l.Error != "":
				yield(Extent{}, fmt.Errorf("diff of %s and %s: %s", from, to, l.Error))
			case l.Extent != nil:
				if yield(*l.Extent, nil) {
					continue
				}
			}
			return
		}
	}
}
