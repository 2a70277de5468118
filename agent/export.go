package agent

import (
	"context"

	"varve/layers"
)

// ExportInfo names something that can be opened as a block device.
type ExportInfo struct {
	Name        string
	Description string
}

// An Export is an open volume or snapshot.
type Export struct {
	Name        string
	Description string
	Layer       layers.Layer // a *layers.Volume if Writable
	Writable    bool
	close       func() error
}

// Close ends the use of the export. Only the first call counts.
func (e *Export) Close() error { return e.close() }

// Exports returns what OpenExport opens, by name.
func (a *Agent) Exports(ctx context.Context) ([]ExportInfo, error) {
	return nil, fail(Internal, "not built yet")
}

// OpenExport opens VOLUME for reading and writing, or VOLUME@SNAPSHOT for
// reading; names or ids on either side.
func (a *Agent) OpenExport(ctx context.Context, name string) (*Export, error) {
	return nil, fail(Internal, "not built yet")
}
