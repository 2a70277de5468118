package main

import (
	"context"
	"maps"

	"varve/agent"
	"varve/agent/object"
	"varve/agent/object/s3"
	"varve/agent/object/swift"
)

// stores opens the stores of targets, with the credentials of environ for
// targets that have none of their own.
type stores struct{ environ []string }

// An opener opens a store of one kind, with its credentials.
type opener func(ctx context.Context, u object.URL, env map[string]string) (object.Store, error)

// open opens the store at a place, with reads that stand still asked for again
// where a network is between. Without credentials of its own, the process's
// are taken. The two are never mixed: half of each logs in as nobody knows whom.
func (s stores) open(ctx context.Context, p agent.Place) (object.Store, error) {
	return s.use(ctx, p, map[string]opener{"file": openDir, "swift": swift.Open, "s3": s3.Open})
}

// create is open for a target that is new: the place is made if it is missing.
func (s stores) create(ctx context.Context, p agent.Place) (object.Store, error) {
	return s.use(ctx, p, map[string]opener{"file": createDir, "swift": swift.Create, "s3": s3.Create})
}

func (s stores) use(ctx context.Context, p agent.Place, kinds map[string]opener) (object.Store, error) {
	u, err := object.ParseURL(p.URL)
	if err != nil {
		return nil, err
	}
	env := maps.Clone(p.Env)
	if len(env) == 0 {
		env = credentialsIn(u.Scheme, s.environ)
	}
	if p.CAFile != "" {
		env["OS_CACERT"], env["AWS_CA_BUNDLE"] = p.CAFile, p.CAFile
	}
	object.WithProxy(env, p.Proxy)
	store, err := kinds[u.Scheme](ctx, u, env)
	if err != nil || u.Scheme == "file" {
		return store, err
	}
	return object.Hedge(store), nil
}

func openDir(_ context.Context, u object.URL, _ map[string]string) (object.Store, error) {
	return object.Dir(u.Path)
}

func createDir(_ context.Context, u object.URL, _ map[string]string) (object.Store, error) {
	return object.CreateDir(u.Path)
}
