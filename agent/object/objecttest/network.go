package objecttest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"varve/agent/object"
)

// A Network is what stands between a Store and its server, and can break.
type Network interface {
	Delay(d time.Duration)
	CutUpload(bytes int64)
	CutDownload(bytes int64)
	Reset()
	Hang()
	Heal() // ends the above
	Down()
	Up()
}

// RunNetwork tests how a Store, whose server is behind network, bears its
// faults: behind Retry it completes when the fault has gone, and alone it fails
// with a temporary error that is not taken for something else.
func RunNetwork(t *testing.T, s object.Store, network Network) {
	const size = 4 << 20
	old, data := Bytes(1, size), Bytes(2, size)
	for _, c := range []struct {
		name     string
		begin    func()
		end      func()
		harmless bool // it only takes longer
	}{
		{"Latency", func() { network.Delay(100 * time.Millisecond) }, network.Heal, true},
		{"CutUpload", func() { network.CutUpload(1_000_000) }, network.Heal, false},
		{"CutDownload", func() { network.CutDownload(50) }, network.Heal, false},
		{"CutDownloadLate", func() { network.CutDownload(1_000_000) }, network.Heal, false},
		{"Reset", network.Reset, network.Heal, false},
		{"Down", network.Down, network.Up, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			put(t, s, "p/a", old)
			put(t, s, "p/b", old)
			operations := map[string]func(s object.Store) error{
				"put": func(s object.Store) error { return s.Put(t.Context(), "p/a", data) },
				"get": func(s object.Store) error {
					p := make([]byte, size)
					n, err := s.Get(t.Context(), "p/b", p, 0)
					if err == nil && (n != size || !bytes.Equal(p, old)) {
						t.Errorf("Get gave %d bytes, not those that were put, and no error", n)
					}
					return err
				},
				"list": func(s object.Store) error {
					count := 0
					for _, err := range s.List(t.Context(), "p/") {
						if err != nil {
							return err
						}
						count++
					}
					if count != 2 {
						t.Errorf("List yielded %d of 2 objects and no error", count)
					}
					return nil
				},
				"delete": func(s object.Store) error { return s.Delete(t.Context(), "p/no", "p/no2", "p/no3") },
			}
			for op, call := range operations {
				c.begin()
				err := call(s)
				var e *object.Error
				switch {
				case err == nil: // a small answer passes a cut that is further on
				case c.harmless:
					t.Errorf("%s: %v", op, err)
				case errors.Is(err, fs.ErrNotExist), !errors.As(err, &e), !e.Temporary, !strings.Contains(err.Error(), op):
					t.Errorf("%s: got %v, want a temporary error that names the operation", op, err)
				}

				// The fault goes when it has been met once more.
				healed := false
				policy := object.Policy{Base: time.Millisecond, Notify: func(error, int, time.Duration) {
					if !healed {
						healed = true
						c.end()
					}
				}}
				if err := call(object.Retry(s, policy)); err != nil {
					t.Errorf("%s behind Retry: %v", op, err)
				}
				if !healed {
					c.end()
				}
			}
			holds(t, s, "p/a", data)
			holds(t, s, "p/b", old)
		})
	}
	t.Run("CutPutLeavesOldObject", func(t *testing.T) {
		put(t, s, "p/c", old)
		network.CutUpload(1_000_000)
		if err := s.Put(t.Context(), "p/c", data); err == nil {
			t.Error("a Put that was cut off succeeded")
		}
		network.Heal()
		holds(t, s, "p/c", old)
	})
	t.Run("GivesUp", func(t *testing.T) {
		network.Down()
		defer network.Up()
		err := object.Retry(s, object.Policy{Base: time.Millisecond, Tries: 3}).Put(t.Context(), "p/a", data)
		if err == nil || !strings.Contains(err.Error(), "gave up after 3 tries") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("with the server down: got %v", err)
		}
	})
	t.Run("CancelWhileSilent", func(t *testing.T) {
		put(t, s, "p/a", old)
		network.Hang()
		defer network.Heal()
		for op, call := range map[string]func(context.Context) error{
			"put": func(ctx context.Context) error { return s.Put(ctx, "p/d", data) },
			"get": func(ctx context.Context) error {
				_, err := s.Get(ctx, "p/a", make([]byte, size), 0)
				return err
			},
			"list": func(ctx context.Context) error {
				for _, err := range s.List(ctx, "") {
					return err
				}
				return nil
			},
			"delete": func(ctx context.Context) error { return s.Delete(ctx, "p/a") },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			start := time.Now()
			err := call(ctx)
			cancel()
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 30*time.Second {
				t.Errorf("%s of a silent server: got %v after %v; the context ended after 200ms", op, err, took)
			}
		}
	})
}
