package main

import (
	"varve/agent"
	"varve/nbd"
)

// contextsOf are the metadata contexts of an export: how deep in the stack of
// layers bytes lie, and what changed since each snapshot. Each has a name of
// ours and the one that QEMU gives the same thing, which its backup tools know
// (docs/interop/nbd.rst of QEMU).
func contextsOf(e *agent.Export) []nbd.Context {
	contexts := []nbd.Context{{Name: "varve:depth", Runs: e.Depths}, {Name: "qemu:allocation-depth", Runs: e.Depths}}
	for _, s := range e.Since {
		contexts = append(contexts,
			nbd.Context{Name: "varve:dirty:" + s.Snapshot, Runs: s.Changes},
			nbd.Context{Name: "qemu:dirty-bitmap:" + s.Snapshot, Runs: s.Changes})
	}
	return contexts
}
