package object

import (
	"context"
	"slices"
)

// A Class says who waits for a request. It decides who goes first where there
// is not enough for all.
type Class uint8

const (
	Demand Class = iota // somebody waits for the answer: a mount, a list. What a context is that says nothing
	Copy                // a backup, a restore
	Upkeep              // verifying, pruning
	classes
)

type classKey struct{}

// WithClass makes the requests of ctx those of a class.
func WithClass(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, classKey{}, c)
}

func classOf(ctx context.Context) Class {
	c, _ := ctx.Value(classKey{}).(Class)
	return c
}

// fairShare is the turn of a line that the class behind gets: without it a
// mount that is read all day would let an upload stand still until the server
// gives it up.
const fairShare = 8

// A line is who waits for something, in the order in which they get it: a
// class before the next one, but every fairShare-th goes to the last class that
// waits; within a class who came first. Its user guards it.
type line struct {
	waiting [classes][]*waiter
	turn    int
}

// A waiter is one who waits for n of something.
type waiter struct {
	class Class
	n     int64
	ready chan struct{} // closed when it is its turn
}

func (l *line) join(c Class, n int64) *waiter {
	w := &waiter{class: c, n: n, ready: make(chan struct{})}
	l.waiting[c] = append(l.waiting[c], w)
	return w
}

// next returns who is first among those that may go, or nil.
func (l *line) next(may func(Class) bool) *waiter {
	var found *waiter
	for c := range classes {
		if len(l.waiting[c]) == 0 || !may(c) {
			continue
		}
		if found == nil || l.turn%fairShare == fairShare-1 {
			found = l.waiting[c][0]
		}
	}
	return found
}

// call takes w, whom next returned, out of the line and tells it.
func (l *line) call(w *waiter) {
	l.turn++
	l.leave(w)
	close(w.ready)
}

// leave takes w out of the line. It reports whether w was still in it.
func (l *line) leave(w *waiter) bool {
	i := slices.Index(l.waiting[w.class], w)
	if i < 0 {
		return false
	}
	l.waiting[w.class] = slices.Delete(l.waiting[w.class], i, i+1)
	return true
}

func (l *line) empty() bool {
	for c := range classes {
		if len(l.waiting[c]) > 0 {
			return false
		}
	}
	return true
}
