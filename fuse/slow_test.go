package fuse

import (
	"context"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A read without an answer is an I/O error after two minutes, also where it
// only waits for its turn; the log says so once in ten seconds, and reads work
// again when the answers come.
func TestReadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newMemSource(), &logBuffer{}
		data := pattern(8192, 3)
		answers := make(chan struct{})
		image := s.add("v", "a", noon, &brokenLayer{Layer: dense(data), readAt: func(p []byte, off int64) (int, error) {
			<-answers
			return dense(data).ReadAt(p, off)
		}})
		fsys := newFilesystem(t.Context(), s, slog.New(slog.NewTextHandler(log, nil)))
		h, err := fsys.handles.open(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		f := &file{filesystem: fsys, handle: h}
		const readers = maxFetches + 8
		type end struct {
			errno syscall.Errno
			after time.Duration
		}
		ends := make(chan end, readers)
		began := time.Now()
		for range readers {
			go func() {
				_, errno := f.Read(t.Context(), make([]byte, 4096), 0)
				ends <- end{errno, time.Since(began)}
			}()
		}
		for range readers {
			if got := <-ends; got.errno != syscall.EIO || got.after > readTime+grace {
				t.Errorf("a read without an answer: %v after %v, want EIO after %v", got.errno, got.after, readTime+grace)
			}
		}
		if n := strings.Count(log.String(), "no answer for 2m0s"); n != 1 {
			t.Errorf("%d lines in the log:\n%s", n, log)
		}
		interrupted, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, errno := f.Read(interrupted, make([]byte, 4096), 0); errno != syscall.EINTR {
			t.Errorf("a read that is interrupted: %v", errno)
		}
		close(answers)
		result, errno := f.Read(t.Context(), make([]byte, 4096), 4096)
		if errno != 0 {
			t.Fatalf("after the answers: %v", errno)
		}
		if got, _ := result.Bytes(make([]byte, 4096)); string(got) != string(data[4096:]) {
			t.Error("after the answers: other bytes")
		}
		f.Release(t.Context())
		synctest.Wait()
		if _, now := s.opened(); now != 0 {
			t.Errorf("%d handles are open", now)
		}
	})
}
