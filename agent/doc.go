// Package agent is the daemon's brain: the operations on volumes, snapshots,
// backups and targets, and what the daemon has open.
//
// # Concepts
//
// An Agent owns a state folder: the catalog, the folders of the volumes, the
// targets' secrets. It keeps every volume open. Requests are answered at once
// or begin an operation: work that is recorded before it begins, goes on
// without whoever asked, reports its progress, and can be canceled.
//
// Everything that exists is named by a ref, its id or its name. Names need not
// be unique; a ref that could mean several things is an error that lists them.
//
// # Use
//
//	a, err := agent.Start(ctx, agent.Config{State: dir, OpenStore: open})
//	defer a.Close()
//	v, err := a.CreateVolume(ctx, agent.NewVolume{Name: "db", Size: 20 << 30})
//	b, op, err := a.CreateBackup(ctx, agent.NewBackup{Volume: "db"})
//	for op = range a.WatchOperation(ctx, op.ID) {
//		show(op)
//	}
//
// # The life of a volume
//
//	creating ─► available ◄─► in-use            a writable export is open
//	                │  ▲        │  ▲
//	                ▼  │        ▼  │
//	              backing-up (previous_status)  attach and detach go on
//	available ─► restoring-backup ─► available, error, error_restoring
//	available ◄─► maintenance               nobody may open it; backups, restores, reverts go on
//	available ─► deleting ─► gone, error_deleting
//
// # What survives a crash
//
// Every change of the catalog is one transaction; the outcome of an operation
// and what it means for its subjects are the same one. Start finds what was
// under way and ends it: see recover.go, and docs/design.md section 9.
//
// # Order of locks
//
// volume.quiet, volume.chain, then a transaction of the catalog, then Agent.mu, which is held
// for instants and never while a transaction is begun. Nothing waits for a
// target with a lock held, but for the opening of that same target.
package agent
