package main

import (
	"context"

	"varve/agent/object"
	"varve/agent/object/s3"
	"varve/agent/object/swift"
)

// stores opens the stores of targets, with the credentials of environ for
// targets that have none of their own.
type stores struct{ environ []string }

// An opener opens a store of one kind, with its credentials.
type opener func(ctx context.Context, u object.URL, env map[string]string) (object.Store, error)

// open opens the store of a target's URL. env holds the target's credentials;
// without any, the process's are taken. The two are never mixed: half of each
// logs in as nobody knows whom.
func (s stores) open(ctx context.Context, url string, env map[string]string) (object.Store, error) {
	return s.use(ctx, url, env, map[string]opener{"file": openDir, "swift": swift.Open, "s3": s3.Open})
}

// create is open for a target that is new: the place is made if it is missing.
func (s stores) create(ctx context.Context, url string, env map[string]string) (object.Store, error) {
	return s.use(ctx, url, env, map[string]opener{"file": createDir, "swift": swift.Create, "s3": s3.Create})
}

func (s stores) use(ctx context.Context, url string, env map[string]string, kinds map[string]opener) (object.Store, error) {
	u, err := object.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if len(env) == 0 {
		env = credentialsIn(u.Scheme, s.environ)
	}
	return kinds[u.Scheme](ctx, u, env)
}

func openDir(_ context.Context, u object.URL, _ map[string]string) (object.Store, error) {
	return object.Dir(u.Path)
}

func createDir(_ context.Context, u object.URL, _ map[string]string) (object.Store, error) {
	return object.CreateDir(u.Path)
}
