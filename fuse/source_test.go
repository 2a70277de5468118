package fuse_test

import (
	"testing"

	"varve/fuse"
	"varve/fuse/fusetest"
)

// The source that the other tests mount keeps the promises of fuse.Source.
func TestMemSource(t *testing.T) { fusetest.Run(t, fuse.NewTestSource()) }
