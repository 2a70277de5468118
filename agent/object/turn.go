package object

import (
	"context"
	"sync"
	"time"
)

// A Turn holds back work that makes way for others. It returns when a piece of
// work, of some milliseconds, may begin, or with the cause of the context's end;
// end is to be called once, when the piece has ended.
type Turn func(context.Context) (end func(), err error)

type turnKey struct{}

// WithTurn makes what is done with ctx take turns: each request that passes a
// [Gate] is a piece of work, and so is each call of [InTurn]. nil ends that.
func WithTurn(ctx context.Context, t Turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

func turnOf(ctx context.Context) Turn {
	t, _ := ctx.Value(turnKey{}).(Turn)
	return t
}

// InTurn does a piece of work when its turn has come; at once where ctx takes no
// turns. What work does with the context that it is given belongs to the piece,
// so requests in it do not wait for another turn.
func InTurn(ctx context.Context, work func(context.Context) error) error {
	end, err := TakeTurn(ctx)
	if err != nil {
		return err
	}
	defer end()
	return work(WithTurn(ctx, nil))
}

// TakeTurn returns when a piece of work may begin. Nothing in the piece may wait
// for another turn.
func TakeTurn(ctx context.Context) (end func(), err error) {
	if t := turnOf(ctx); t != nil {
		return t(ctx)
	}
	return func() {}, nil
}

// A request that moves its bytes more slowly than this is one to a store that is
// far away, or that does not answer, and no burden on this machine: its turn is
// over before it is.
const (
	requestLeast = 25 * time.Millisecond
	requestRate  = 32 << 20 // bytes a second
)

// beginRequest returns when the turn of a request that moves n bytes has come.
// end is to be called when it is over.
func beginRequest(ctx context.Context, n int) (end func(), err error) {
	taken, err := TakeTurn(ctx)
	if err != nil || turnOf(ctx) == nil {
		return taken, err
	}
	taken = sync.OnceFunc(taken)
	limit := time.AfterFunc(requestLeast+time.Duration(n)*time.Second/requestRate, taken)
	return func() {
		limit.Stop()
		taken()
	}, nil
}
