package api

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"varve/agent"
	"varve/layers"
)

// requestIDHeader is OpenStack's header for the id of a request.
const requestIDHeader = "X-Openstack-Request-Id"

// observe gives every request an id, logs what changes something or fails, and
// keeps a panic from ending the daemon.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := "req-" + layers.NewID().String()
		w.Header().Set(requestIDHeader, id)
		began := time.Now()
		seen := &answerObserver{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				s.config.Log.Error("panic while answering a request", "request", id, "method", r.Method,
					"path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if !seen.begun {
					writeFault(seen, newFault(http.StatusInternalServerError, agent.Internal,
						"the daemon met a condition that should not occur; its log has the details"))
				}
			}
			level := slog.LevelDebug
			if r.Method != http.MethodGet {
				level = slog.LevelInfo
			}
			if seen.code >= http.StatusInternalServerError {
				level = slog.LevelWarn
			}
			s.config.Log.Log(r.Context(), level, "request", "request", id, "method", r.Method,
				"path", r.URL.Path, "code", seen.code, "took", time.Since(began).Round(time.Microsecond).String())
		}()
		r.Body = &requestBody{r.Body}
		next.ServeHTTP(seen, r)
	})
}

// A requestBody tells errors of the body from errors of the daemon.
type requestBody struct{ io.ReadCloser }

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &bodyError{err}
	}
	return n, err
}

// A bodyError says that a request's body did not come whole, or not in the form
// that its headers said. That is its client's doing.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// An answerObserver keeps the code of the answer that passes through it.
type answerObserver struct {
	http.ResponseWriter
	code  int
	begun bool
}

func (o *answerObserver) WriteHeader(code int) {
	if !o.begun {
		o.code, o.begun = code, true
	}
	o.ResponseWriter.WriteHeader(code)
}

func (o *answerObserver) Write(b []byte) (int, error) {
	o.begun = true
	return o.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush through it.
func (o *answerObserver) Unwrap() http.ResponseWriter { return o.ResponseWriter }
