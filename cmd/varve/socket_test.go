package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestListenUnixTogether: of many that find a stale socket at once exactly one
// gets the path, and can be reached at it.
func TestListenUnixTogether(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "s")
		stale, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		stale.(*net.UnixListener).SetUnlinkOnClose(false)
		stale.Close()
		var all sync.WaitGroup
		var mu sync.Mutex
		var got []net.Listener
		for range 8 {
			all.Go(func() {
				l, err := listenUnix(path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got = append(got, l)
				}
			})
		}
		all.Wait()
		if len(got) != 1 {
			t.Fatalf("%d listen on one path", len(got))
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("who has the path cannot be reached: %v", err)
		}
		conn.Close()
		if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "somebody listens") {
			t.Errorf("a path that is taken: %v", err)
		}
		got[0].Close()
		if _, err := os.Lstat(path); err == nil {
			t.Error("a closed socket's file stays")
		}
	}
}

// TestOwnSocketLeavesOthers: who ends removes no socket that another has made at
// its path meanwhile.
func TestOwnSocketLeavesOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	second, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the second's socket is gone: %v", err)
	}
	conn.Close()
}
