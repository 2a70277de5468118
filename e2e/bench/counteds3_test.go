package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestCountedS3(t *testing.T) {
	var host, body string
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		host, body = r.Host, string(b)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer behind.Close()
	to, err := url.Parse(behind.URL)
	if err != nil {
		t.Fatal(err)
	}
	var s countedS3
	front := httptest.NewServer(s.pass(to))
	defer front.Close()
	for n := range int64(3) {
		resp, err := http.Post(front.URL+"/bucket/key", "", strings.NewReader("content"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTeapot || body != "content" || "http://"+host != front.URL {
			t.Errorf("status %d, body %q, host %q: want %d, content, that of %s", resp.StatusCode, body, host, http.StatusTeapot, front.URL)
		}
		if got := s.count.Load(); got != n+1 {
			t.Errorf("%d requests are counted as %d", n+1, got)
		}
	}
}
