package object

import (
	"context"
	"iter"
	"sync/atomic"
)

// A Switch is a Store that stands for another one, which can be replaced while
// it is used: calls under way end with the old one. It is used only after the
// first Replace.
type Switch struct {
	now atomic.Pointer[Store]
}

// Replace makes s what the Switch stands for.
func (w *Switch) Replace(s Store) { w.now.Store(&s) }

// Empty reports whether the Switch stands for nothing yet.
func (w *Switch) Empty() bool { return w.now.Load() == nil }

func (w *Switch) store() Store { return *w.now.Load() }

func (w *Switch) Put(ctx context.Context, name string, data []byte) error {
	return w.store().Put(ctx, name, data)
}

func (w *Switch) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	return w.store().Get(ctx, name, p, off)
}

func (w *Switch) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return w.store().List(ctx, prefix)
}

func (w *Switch) Delete(ctx context.Context, names ...string) error {
	return w.store().Delete(ctx, names...)
}
