package object

import (
	"context"
	"io"
	"net/http"
)

// A pace is what a [Gate] lets pass in a second. It goes along in the context of
// each call, to where the bytes are.
type pace struct {
	up, down, requests bucket
}

type gateKey struct{}

// withGate says which Gate a call has passed.
func withGate(ctx context.Context, g *Gate) context.Context {
	return context.WithValue(ctx, gateKey{}, g)
}

// gateOf returns the Gate that the call of ctx has passed, or nil.
func gateOf(ctx context.Context) *Gate {
	g, _ := ctx.Value(gateKey{}).(*Gate)
	return g
}

// unlimited is the pace of calls that came through no Gate.
var unlimited = new(pace)

func paceOf(ctx context.Context) *pace {
	if g := gateOf(ctx); g != nil {
		return &g.pace
	}
	return unlimited
}

// roundTrip sends a request at the pace of its context.
func roundTrip(t *http.Transport, r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	p := paceOf(ctx)
	if err := p.requests.take(ctx, 1); err != nil {
		if r.Body != nil {
			r.Body.Close() // as a RoundTripper must
		}
		return nil, err
	}
	if r.Body != nil && r.Body != http.NoBody {
		paced := *r
		paced.Body = &pacedBody{r.Body, ctx, &p.up}
		if r.GetBody != nil {
			paced.GetBody = func() (io.ReadCloser, error) {
				body, err := r.GetBody()
				return &pacedBody{body, ctx, &p.up}, err
			}
		}
		r = &paced
	}
	response, err := t.RoundTrip(r)
	if err == nil {
		response.Body = &pacedBody{response.Body, ctx, &p.down}
	}
	return response, err
}

// A pacedBody is read no faster than its bucket fills.
type pacedBody struct {
	io.ReadCloser
	ctx    context.Context
	bucket *bucket
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:b.bucket.piece(len(p))])
	if n > 0 {
		if ended := b.bucket.take(b.ctx, int64(n)); ended != nil {
			return 0, ended
		}
	}
	return n, err
}
