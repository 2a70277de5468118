package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"varve/agent"
	"varve/catalog"
	"varve/layers"
)

type (
	operationsBody struct {
		Operations []Operation `json:"operations"`
	}
	operationRef struct {
		Operation string `path:"operation" doc:"id"`
	}
	operationChangeBody struct {
		Operation OperationChange `json:"operation"`
	}
)

func (s *Server) addOperations(h huma.API) {
	huma.Get(h, "/v1/operations", func(ctx context.Context, _ *struct{}) (*answer[operationsBody], error) {
		all, err := s.config.Agent.Operations(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		body := operationsBody{Operations: make([]Operation, len(all))}
		for i, o := range all {
			body.Operations[i] = operation(o)
		}
		return &answer[operationsBody]{body}, nil
	})
	huma.Get(h, "/v1/operations/{operation}", func(ctx context.Context, in *struct {
		Operation string `path:"operation" doc:"id"`
		Wait      int    `query:"wait" minimum:"0" maximum:"60" doc:"seconds to wait for its end"`
	}) (*answer[operationBody], error) {
		o, err := s.operation(ctx, in.Operation)
		if err != nil {
			return nil, answerFor(err)
		}
		if in.Wait > 0 && o.Ended.IsZero() {
			o = s.await(ctx, o, min(maxWait, time.Duration(in.Wait)*time.Second))
		}
		return &answer[operationBody]{operationBody{operation(o)}}, nil
	})
	huma.Get(h, "/v1/operations/{operation}/events", s.events, describeEvents)
	huma.Put(h, "/v1/operations/{operation}", func(ctx context.Context, in *struct {
		Operation string `path:"operation" doc:"id"`
		Body      operationChangeBody
	}) (*answer[operationBody], error) {
		o, err := s.operation(ctx, in.Operation)
		if err != nil {
			return nil, answerFor(err)
		}
		return begun(s.config.Agent.SetFullSpeed(ctx, o.ID, in.Body.Operation.FullSpeed))
	})
	huma.Delete(h, "/v1/operations/{operation}", func(ctx context.Context, in *operationRef) (*answer[operationBody], error) {
		o, err := s.operation(ctx, in.Operation)
		if err != nil {
			return nil, answerFor(err)
		}
		if err := s.config.Agent.CancelOperation(ctx, o.ID); err != nil {
			return nil, answerFor(err)
		}
		return begun(s.config.Agent.Operation(ctx, o.ID))
	})
}

func (s *Server) operation(ctx context.Context, ref string) (catalog.Operation, error) {
	id, err := layers.ParseID(ref)
	if err != nil {
		return catalog.Operation{}, &agent.Error{Reason: agent.NotFound,
			Message: fmt.Sprintf("no operation %q: operations are named by their id; %q shows them", ref, "varve operation list")}
	}
	return s.config.Agent.Operation(ctx, id)
}

// await returns the operation when it has ended, or as it stands after the
// time limit.
func (s *Server) await(ctx context.Context, o catalog.Operation, limit time.Duration) catalog.Operation {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for next := range s.watch(ctx, o.ID) {
		o = next
	}
	return o
}

// watch is WatchOperation that also ends when the server is shut down.
func (s *Server) watch(ctx context.Context, id layers.ID) func(func(catalog.Operation) bool) {
	return func(yield func(catalog.Operation) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-s.stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
		for o := range s.config.Agent.WatchOperation(ctx, id) {
			if !yield(o) {
				return
			}
		}
	}
}

// events streams the operation as lines of JSON, each the whole of it, until
// it has ended or the daemon stops.
func (s *Server) events(ctx context.Context, in *operationRef) (*huma.StreamResponse, error) {
	o, err := s.operation(ctx, in.Operation)
	if err != nil {
		return nil, answerFor(err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "application/x-ndjson")
		lines, flusher := json.NewEncoder(w), http.NewResponseController(w)
		for o := range s.watch(hc.Context(), o.ID) {
			if lines.Encode(operation(o)) != nil || flusher.Flush() != nil {
				return // the client is gone
			}
		}
	}}, nil
}

func describeEvents(o *huma.Operation) {
	o.Summary = "Follow an operation: lines of JSON, the operation after each change"
	o.Responses = map[string]*huma.Response{"200": {
		Description: "One operation a line, the last when it has ended",
		Content:     map[string]*huma.MediaType{"application/x-ndjson": {}},
	}}
}
