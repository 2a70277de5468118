package objecttest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"varve/agent/object"
)

// RunHostile uses stores whose servers give answers that no server gives: bodies
// without end, that are much longer than they say or unpack to, and referrals
// to elsewhere. Each call ends, with an error, and takes little from the server.
// open returns a store whose server answers so from then on.
func RunHostile(t *testing.T, open func(t *testing.T, answer http.HandlerFunc) object.Store) {
	var sent atomic.Int64
	page := []byte(strings.Repeat("x", 64<<10))
	endless := func(w http.ResponseWriter) {
		for {
			n, err := w.Write(page)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(page) // memory takes it
	z.Close()
	bomb := bytes.Repeat(packed.Bytes(), 1<<10) // 64 MiB: RFC 1952, 2.2
	answers := map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) { endless(w) },
		"endless in its headers' words": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<50))
			endless(w)
		},
		"endless refusal": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			endless(w)
		},
		"packed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb) // whoever asked may be gone
		},
		"referral in a circle": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
		},
	}
	for what, answer := range answers {
		t.Run(what, func(t *testing.T) {
			s := open(t, answer)
			for op, call := range map[string]func() error{
				"put": func() error { return s.Put(t.Context(), "a", []byte("x")) },
				"get": func() error {
					p := make([]byte, 100)
					n, err := s.Get(t.Context(), "a", p, 5)
					if err == nil && bytes.Equal(p[:n], page[:n]) {
						return errors.New("the server's own x") // of a body without end any part may be an object
					}
					return err
				},
				"list": func() error {
					for _, err := range s.List(t.Context(), "") {
						if err != nil {
							return err
						}
					}
					return nil
				},
				"delete": func() error { return s.Delete(t.Context(), "a") },
			} {
				sent.Store(0)
				err := call()
				if n := sent.Load(); n > 64<<20 {
					t.Errorf("%s took %d bytes from the server", op, n)
				}
				if (op == "get" || op == "list") && err == nil {
					t.Errorf("%s succeeds", op)
				}
			}
		})
	}
}
