package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

// statusOf maps what the agent says to what HTTP says. Where the state of
// things forbids a request the answer is 400 and not 409, as Cinder has it.
var statusOf = map[agent.Reason]int{
	agent.NotFound:    http.StatusNotFound,
	agent.Ambiguous:   http.StatusConflict,
	agent.Invalid:     http.StatusBadRequest,
	agent.Conflict:    http.StatusBadRequest,
	agent.InUse:       http.StatusBadRequest,
	agent.TooLarge:    http.StatusRequestEntityTooLarge,
	agent.Denied:      http.StatusForbidden,
	agent.Unavailable: http.StatusServiceUnavailable,
	agent.Corrupt:     http.StatusInternalServerError,
	agent.Stopped:     http.StatusServiceUnavailable,
	agent.Internal:    http.StatusInternalServerError,
}

// faultNames are OpenStack's words for the codes: Compute API, "Faults", and
// what Cinder's wsgi layer writes.
var faultNames = map[int]string{
	http.StatusBadRequest:            "badRequest",
	http.StatusUnauthorized:          "unauthorized",
	http.StatusForbidden:             "forbidden",
	http.StatusNotFound:              "itemNotFound",
	http.StatusMethodNotAllowed:      "badMethod",
	http.StatusConflict:              "conflictingRequest",
	http.StatusRequestEntityTooLarge: "overLimit",
	http.StatusUnsupportedMediaType:  "badMediaType",
	http.StatusTooManyRequests:       "overLimit",
	http.StatusNotImplemented:        "notImplemented",
	http.StatusServiceUnavailable:    "serviceUnavailable",
}

const otherFault = "computeFault"

// An Error is an answer that says why a request was not carried out.
type Error struct {
	Code      int          // of HTTP
	Reason    agent.Reason // empty if the answer did not come from the agent
	Message   string       // for a person
	RequestID string       // req-…, as the daemon's log has it
}

// Error is the message with the code and the request id, as OpenStack's client
// prints it; they end its first line.
func (e *Error) Error() string {
	first, rest, more := strings.Cut(e.Message, "\n")
	s := fmt.Sprintf("%s (HTTP %d)", first, e.Code)
	if e.RequestID != "" {
		s += fmt.Sprintf(" (Request-ID: %s)", e.RequestID)
	}
	if more {
		s += "\n" + rest
	}
	return s
}

// fault is the body of an error: one member, named for the code.
type fault map[string]faultBody

type faultBody struct {
	Code    int          `json:"code"`
	Message string       `json:"message"`
	Reason  agent.Reason `json:"reason,omitempty"`
}

func newFault(code int, reason agent.Reason, message string) fault {
	name, known := faultNames[code]
	if !known {
		name = otherFault
	}
	return fault{name: {Code: code, Message: message, Reason: reason}}
}

// Error and GetStatus make a fault what huma returns from a handler.
func (f fault) Error() string {
	for _, b := range f {
		return b.Message
	}
	return ""
}

func (f fault) GetStatus() int {
	for _, b := range f {
		return b.Code
	}
	return http.StatusInternalServerError
}

// answerFor is the one place where an error becomes an answer of HTTP.
func answerFor(err error) error {
	if err == nil {
		return nil
	}
	reason := agent.ReasonOf(err)
	code, known := statusOf[reason]
	if !known {
		code = http.StatusInternalServerError
	}
	return newFault(code, reason, err.Error())
}

// huma makes an answer of its own for what does not fit the schema. It has one
// hook for that, a variable.
func init() {
	huma.NewError = func(code int, message string, errs ...error) huma.StatusError {
		if code == http.StatusUnprocessableEntity {
			code = http.StatusBadRequest
		}
		var details []string
		for _, err := range errs {
			var d huma.ErrorDetailer
			switch {
			case err == nil:
			case errors.As(err, &d):
				// Its value is left out: it may be a passphrase.
				details = append(details, d.ErrorDetail().Location+": "+d.ErrorDetail().Message)
			default:
				details = append(details, err.Error())
			}
		}
		if len(details) > 0 {
			message += ": " + strings.Join(details, "; ")
		}
		var cut *bodyError
		if code == http.StatusInternalServerError && errors.As(errors.Join(errs...), &cut) {
			code = http.StatusBadRequest
		}
		reason := agent.Internal
		if code < http.StatusInternalServerError {
			reason = agent.Invalid
		}
		return newFault(code, reason, message)
	}
}

// openStackErrors gives the errors that the multiplexer itself makes, unknown
// paths and methods, the shape of all others.
func openStackErrors(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &statusProbe{header: http.Header{}}
		mux.ServeHTTP(probe, r)
		if probe.code == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", probe.header.Get("Allow"))
			writeFault(w, newFault(probe.code, agent.Invalid, fmt.Sprintf("%s does not allow %s", r.URL.Path, r.Method)))
			return
		}
		writeFault(w, newFault(http.StatusNotFound, agent.NotFound, fmt.Sprintf("no such resource: %s; /openapi.json lists them", r.URL.Path)))
	})
}

// A statusProbe is a ResponseWriter that keeps the code and nothing else.
type statusProbe struct {
	header http.Header
	code   int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) WriteHeader(code int)        { p.code = code }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }

func writeFault(w http.ResponseWriter, f fault) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.GetStatus())
	// The client is gone if this fails.
	_ = json.NewEncoder(w).Encode(f)
}
