package repo

import (
	"errors"
	"sync"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// A failing destination takes so many calls of one kind, and fails the next.
type failing struct {
	kind   string
	mu     sync.Mutex
	left   int
	failed bool
}

func (f *failing) call(kind string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if kind != f.kind {
		return nil
	}
	if f.left--; f.left < 0 {
		f.failed = true
		return errStopped
	}
	return nil
}

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if err := f.call("data"); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *failing) WriteZeroes(off, n int64) error { return f.call("zeros") }

// B15, B19: a restore ends with the error of any write that fails, of data and of
// zeros before, between and behind it, and with that of whoever keeps its point.
func TestARestoreTellsOfEachWriteThatFails(t *testing.T) {
	r := testRepo(t, object.NewMem(), true)
	r.packTarget = 64 << 10
	v := newVolume(2 << 20)
	fill(newRand(t), v.bytes[256<<10:512<<10])
	fill(newRand(t), v.bytes[1<<20:3<<19])
	v.mark(0, int64(len(v.bytes)), layers.Data)
	b := must(v.backup(t.Context(), r, layers.ID{}))(t)
	for kind, least := range map[string]int{"data": 4, "zeros": 3, "point": 1} {
		for k := 0; ; k++ {
			dst := &failing{kind: kind, left: k}
			err := r.Restore(t.Context(), b.ID, dst, RestoreOptions{Checkpoint: func(RestorePoint) error { return dst.call("point") }})
			if dst.failed != errors.Is(err, errStopped) || !dst.failed && err != nil {
				t.Errorf("%s, call %d fails: %t, and the restore says %v", kind, k, dst.failed, err)
			}
			if !dst.failed {
				if k < least {
					t.Errorf("%s: only %d calls were tried", kind, k)
				}
				break
			}
		}
	}
}
