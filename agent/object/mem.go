package object

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem is a Store in memory, for tests and small things.
type Mem struct {
	mu      sync.RWMutex
	objects map[string]memObject
}

type memObject struct {
	data     []byte // never changed
	modified time.Time
}

// NewMem returns an empty Store in memory.
func NewMem() *Mem {
	return &Mem{objects: make(map[string]memObject)}
}

// Clone returns a Store of its own with what m holds now, and when that was
// written.
func (m *Mem) Clone() *Mem {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Mem{objects: maps.Clone(m.objects)}
}

func (m *Mem) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, name); err != nil {
		return m.fail("put", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[name] = memObject{data: slices.Clone(data), modified: time.Now()}
	return nil
}

func (m *Mem) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := check(ctx, name); err != nil {
		return 0, m.fail("get", name, err)
	}
	if off < 0 {
		return 0, m.fail("get", name, errNegative)
	}
	m.mu.RLock()
	object, ok := m.objects[name]
	m.mu.RUnlock()
	if !ok {
		return 0, m.fail("get", name, fs.ErrNotExist)
	}
	if off > int64(len(object.data)) {
		return 0, io.EOF
	}
	n := copy(p, object.data[off:])
	if n < len(p) || off == int64(len(object.data)) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Mem) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var found []Info
		m.mu.RLock()
		for name, object := range m.objects {
			if strings.HasPrefix(name, prefix) {
				found = append(found, Info{Name: name, Size: int64(len(object.data)), Modified: object.modified})
			}
		}
		m.mu.RUnlock()
		slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
		for _, info := range found {
			if err := ctx.Err(); err != nil {
				yield(Info{}, m.fail("list", prefix, err))
				return
			}
			if !yield(info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, m.fail("list", prefix, err))
		}
	}
}

func (m *Mem) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := check(ctx, name); err != nil {
			return m.fail("delete", name, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.objects, name)
	}
	return nil
}

func (m *Mem) fail(op, name string, err error) error {
	return &Error{Op: op, Name: name, Store: "memory", Err: err}
}

var errNegative = errors.New("negative offset")

// check is what every operation begins with.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckName(name)
}
