package agent

import (
	"context"
	"log/slog"

	"varve/agent/object"
)

// Config is what an Agent needs to start.
type Config struct {
	// State is the state folder. It is made if it is not there.
	State string

	// OpenStore opens the store of a target's URL. env holds the target's own
	// credentials by the names of the usual environment (OS_…, AWS_…); what it
	// lacks comes from the daemon's environment.
	OpenStore func(ctx context.Context, url string, env map[string]string) (object.Store, error)

	// Log receives what no caller can be told. Nil means slog.Default().
	Log *slog.Logger
}

// An Agent owns a state folder and carries out what is asked of it. All
// methods are safe for concurrent use.
type Agent struct {
	config Config
}

// Start takes the state folder, brings what a crash left behind into order and
// opens the volumes. A folder that another daemon holds is an Error of reason
// InUse with its pid.
func Start(ctx context.Context, c Config) (*Agent, error) {
	return nil, fail(Internal, "not built yet")
}

// Close stops the running operations and records that they were stopped,
// flushes and closes the volumes, and gives up the state folder. Exports and
// images should be closed first; what is still open fails from now on.
func (a *Agent) Close() error { return nil }
