// Package api is the daemon's API over HTTP and JSON, and the client of it
// that the command line uses.
//
// # Shape
//
// The resources and their fields are those of OpenStack's block storage API
// (Cinder, version 3) as far as Varve has them: an object stands under its
// kind, {"volume": {…}}, a list under the plural. What Varve adds are fields
// and paths of its own. Everything is described at /openapi.json.
//
//	GET POST     /v1/volumes             GET PUT DELETE  /v1/volumes/{volume}
//	POST         /v1/volumes/{volume}/grow
//	POST         /v1/volumes/{volume}/revert     …/check
//	POST DELETE  /v1/volumes/{volume}/maintenance
//	GET POST     /v1/snapshots           GET DELETE  /v1/snapshots/{snapshot}
//	GET          /v1/snapshots/{snapshot}/diff/{other}
//	GET POST     /v1/backups             GET PUT DELETE  /v1/backups/{backup}
//	POST         /v1/backups/expire
//	POST         /v1/backups/{backup}/restore    …/verify
//	GET POST     /v1/targets             GET DELETE  /v1/targets/{target}
//	POST         /v1/targets/{target}/sync       …/verify
//	GET          /v1/operations          GET DELETE  /v1/operations/{operation}
//	GET          /v1/operations/{operation}/events
//	GET POST     /v1/attachments         DELETE      /v1/attachments/{attachment}
//	GET POST     /v1/mounts              DELETE      /v1/mounts/{mount}
//	GET PUT      /v1/quota
//	GET          /v1/status
//
// A part of a path in braces is an id or a name, escaped as URLs are.
//
// # Operations
//
// Work that takes long is answered with 202 and an operation, and goes on
// without the caller. It is followed by a long poll (?wait=30) or as lines of
// JSON from its events, and canceled by DELETE.
//
// # Errors
//
// Every answer carries X-Openstack-Request-Id. An error is
//
//	{"itemNotFound": {"code": 404, "message": "…", "reason": "not found"}}
//
// where the key is OpenStack's word for the code, and reason is Varve's own
// class of errors. The client returns it as *Error.
//
// # Who may call
//
// The API is served on a unix socket that only its owner can open. It has no
// other authentication and must not be served on a network.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"varve/agent"
)

// SocketName is the name of the API's socket in the state folder.
const SocketName = "varve.sock"

// Bounds on what a client may do to the server.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	maxWait       = time.Minute // of a long poll
)

// Config is what a Server needs.
type Config struct {
	Agent   *agent.Agent
	Mounts  Mounts
	Version string // of the program
	Log     *slog.Logger

	// VolumeURI returns the address at which NBD clients find the volume of
	// that name. Nil leaves it out.
	VolumeURI func(volume string) string
}

// Mounts is what the daemon has mounted. The package that knows FUSE and the
// one that knows HTTP do not know each other; the program gives this to both.
type Mounts interface {
	// Mount shows snapshots and backups at an absolute path.
	Mount(ctx context.Context, path string) (Mount, error)
	// List returns what is mounted, oldest first.
	List() []Mount
	// Unmount ends the mount of that id. One that is not there is an error
	// that wraps fs.ErrNotExist.
	Unmount(ctx context.Context, id string) error
}

// A Server answers the API's requests.
type Server struct {
	config   Config
	http     *http.Server
	stopping chan struct{} // closed when answers that wait should end
}

// NewServer returns a server that is ready to Serve.
func NewServer(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{config: c, stopping: make(chan struct{})}
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	s.http.RegisterOnShutdown(func() { close(s.stopping) })
	return s
}

// Serve answers requests on l until Shutdown. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown takes no new requests and returns when those in flight are
// answered, or cuts them off when ctx ends. It may be called once.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Handler returns the API as a handler.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("Varve", s.config.Version)
	config.Info.Description = "Copy-on-write block volumes with backup. " +
		"Objects are named by id or by name; an ambiguous name is an error that lists the ids."
	// No page that loads scripts from elsewhere, no links into answers.
	config.DocsPath = ""
	config.SchemasPath = ""
	config.CreateHooks = nil

	h := humago.New(mux, config)
	s.addVolumes(h)
	s.addSnapshots(h)
	s.addBackups(h)
	s.addReset(h)
	s.addTargets(h)
	s.addTargetKeys(h)
	s.addDescription(h)
	s.addUsage(h)
	s.addOperations(h)
	s.addAttachments(h)
	s.addMounts(h)
	s.addQuota(h)
	s.addStatus(h)
	return s.observe(openStackErrors(mux))
}
