package main

import (
	"context"
	"fmt"

	"varve/agent/object"
)

// stores opens the stores of targets, with the credentials of environ for
// targets that have none of their own.
type stores struct{ environ []string }

// open opens the store of a target's URL. env holds the target's credentials;
// without any, the process's are taken. The two are never mixed: half of each
// logs in as nobody knows whom.
func (s stores) open(ctx context.Context, text string, env map[string]string) (object.Store, error) {
	return s.use(ctx, text, env, object.Dir)
}

// create is open for a target that is new: a folder is made ready for it.
func (s stores) create(ctx context.Context, text string, env map[string]string) (object.Store, error) {
	return s.use(ctx, text, env, object.CreateDir)
}

func (s stores) use(ctx context.Context, text string, env map[string]string, folder func(string) (object.Store, error)) (object.Store, error) {
	u, err := object.ParseURL(text)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "file" {
		return nil, fmt.Errorf("target %s: this build of varve only knows folders: file:///folder", u)
	}
	return folder(u.Path)
}
