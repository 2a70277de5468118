package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync/atomic"
)

const countedS3About = "on versitygw, behind a proxy that counts requests"

// A countedS3 is versitygw with the folder of one repository as a bucket, behind
// a proxy that counts requests.
type countedS3 struct {
	bucket  string
	url     string // of the proxy
	gateway *server
	proxy   *http.Server
	count   atomic.Int64
}

func startCountedS3(ctx context.Context, b *bench, p places) (*countedS3, error) {
	gateway, address, err := startGateway(ctx, b, filepath.Join(p.home, "s3"), filepath.Dir(p.repo))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, gateway.stop())
	}
	s := &countedS3{bucket: filepath.Base(p.repo), url: "http://" + l.Addr().String(), gateway: gateway}
	s.proxy = &http.Server{Handler: s.pass(&url.URL{Scheme: "http", Host: address})}
	go s.proxy.Serve(l) // until close
	return s, nil
}

// pass counts each request and hands it on as it is: the client has signed it,
// with the host it knows.
func (s *countedS3) pass(to *url.URL) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
			r.Out.Host = r.In.Host
		},
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.count.Add(1)
		proxy.ServeHTTP(w, r)
	})
}

func (s *countedS3) close() error { return errors.Join(s.proxy.Close(), s.gateway.stop()) }

// An s3Repository is one whose requests are counted.
type s3Repository struct {
	repository
	s3 *countedS3
}

func (r *s3Repository) requests() int64 { return r.s3.count.Load() }
func (r *s3Repository) close() error    { return errors.Join(r.repository.close(), r.s3.close()) }

// onS3 opens a repository with an S3 server of its own.
func onS3(open func(context.Context, *bench, places, *countedS3) (repository, error)) func(context.Context, *bench, places) (repository, error) {
	return func(ctx context.Context, b *bench, p places) (repository, error) {
		s3, err := startCountedS3(ctx, b, p)
		if err != nil {
			return nil, err
		}
		r, err := open(ctx, b, p, s3)
		if err != nil {
			return nil, errors.Join(err, s3.close())
		}
		return &s3Repository{r, s3}, nil
	}
}
