package s3_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/agent/object/s3"
	"varve/e2e/testbed"
)

// A server with a certificate of an authority of one's own, reached directly:
// by that authority, and by no other.
func TestTLS(t *testing.T) {
	server := testbed.S3TLS(t)
	env := server.Env()
	_, err := s3.Create(t.Context(), bucket(server.URL), env)
	var e *object.Error
	if !errors.As(err, &e) || e.Temporary || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the authority: %v, want a final error", err)
	}
	env["AWS_CA_BUNDLE"] = server.CAFile
	objecttest.RunSmall(t, func(t testing.TB) object.Store { return create(t, server.URL, env) })
}

// Both styles of addresses, with TLS and without, through a proxy that alone
// knows the server's name.
func TestProxyAndStyles(t *testing.T) {
	plain, secure := testbed.S3(t), testbed.S3TLS(t)
	for _, c := range []struct {
		server *testbed.S3Server
		scheme string
		style  string
	}{{plain, "http", "true"}, {plain, "http", "false"}, {secure, "https", "true"}, {secure, "https", "false"}} {
		t.Run(c.scheme+" "+c.style, func(t *testing.T) {
			proxy := testbed.NewWebProxy(t, func(host string) (string, bool) {
				name, _, _ := strings.Cut(host, ":")
				_, address, _ := strings.Cut(c.server.URL, "://")
				return address, name == testbed.S3Domain || strings.HasSuffix(name, "."+testbed.S3Domain)
			})
			env := c.server.Env()
			object.WithProxy(env, proxy.URL)
			env["AWS_CA_BUNDLE"] = c.server.CAFile
			u := bucket(c.scheme + "://" + testbed.S3Domain)
			u.PathStyle = c.style
			s, err := s3.Create(t.Context(), u, env)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if got, err := object.ReadAll(t.Context(), s, "a/b", 10); err != nil || string(got) != "x" {
				t.Errorf("got %q, %v", got, err)
			}
			want := testbed.S3Domain
			if c.style == "false" {
				want = u.Container + "." + want
			}
			want += map[string]string{"http": ":80", "https": ":443"}[c.scheme]
			if hosts := proxy.Hosts(); !slices.Equal(hosts, []string{want}) {
				t.Errorf("the proxy was asked for %v, want %s", hosts, want)
			}

			// The same object under the other style, and past the proxy.
			u.Endpoint, u.PathStyle = c.server.URL, "true"
			env["NO_PROXY"], env["HTTP_PROXY"], env["HTTPS_PROXY"] = "*", "", ""
			direct, err := s3.Open(t.Context(), u, env)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := object.ReadAll(t.Context(), direct, "a/b", 10); err != nil || string(got) != "x" {
				t.Errorf("directly: got %q, %v", got, err)
			}
		})
	}
	env := plain.Env()
	object.WithProxy(env, "http://127.0.0.1:1")
	_, err := s3.Open(t.Context(), bucket("http://"+testbed.S3Domain), env)
	if e := new(object.Error); !errors.As(err, &e) || !e.Temporary || !strings.Contains(err.Error(), "proxy") {
		t.Errorf("with a proxy that is down: %v, want a temporary error that says so", err)
	}
}
