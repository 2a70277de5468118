package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

// maxMoving is how many operations move data at once. More would only share
// the same disk and network.
const maxMoving = 2

// Why running operations are stopped. These are the causes of their contexts.
var (
	errCanceled = &Error{Reason: Stopped, Message: "canceled"}
	errStopped  = &Error{Reason: Stopped, Message: "the daemon was stopped before it ended"}
)

// Config is what an Agent needs to start.
type Config struct {
	// State is the state folder. It is made if it is not there.
	State string

	// OpenStore opens the store at a place.
	OpenStore func(context.Context, Place) (object.Store, error)

	// CreateStore is OpenStore for a target that is being added: it also makes
	// the place if that is a folder without anything in it. Nil means
	// OpenStore.
	CreateStore func(context.Context, Place) (object.Store, error)

	// Retry says how long targets are asked again that fail. The zero value is
	// the one to use.
	Retry object.Policy

	// FreezeHelper are the arguments with which this program hands those that
	// follow to freeze.Main. Without them no file system is frozen.
	FreezeHelper []string

	// Devices attaches volumes to the kernel of this machine. Nil: that is
	// refused.
	Devices Devices

	// GuestRequests returns how many requests the users of volumes have made
	// so far. Operations hold back where they would hurt them. Nil: they never do.
	GuestRequests func() int64

	// Host is what this host calls itself in targets, for people. Empty: the
	// machine's name.
	Host string

	// PollInterval is how often the targets are asked for backups that other
	// hosts made or deleted. 0: only when SyncTarget is called.
	PollInterval time.Duration

	// Log receives what no caller can be told. Nil means slog.Default().
	Log *slog.Logger

	// What is shorter in tests; zero is usual.
	insistence   insistence
	restoreEvery int64
}

// A Place is where a target's store is and how to get there.
type Place struct {
	URL    string
	Env    map[string]string // its own credentials, by the names of the usual environment (OS_…, AWS_…); empty: the daemon's environment
	CAFile string            // see catalog.Target
	Proxy  string            // see catalog.Target
}

// An Agent owns a state folder and carries out what is asked of it. All
// methods are safe for concurrent use.
type Agent struct {
	config  Config
	log     *slog.Logger
	lock    *stateLock
	catalog *catalog.Catalog
	started time.Time

	ctx          context.Context // of the operations; ended by Close
	stop         context.CancelCauseFunc
	work         sync.WaitGroup // running operations
	moving       chan struct{}  // a place for each operation that moves data
	insistence   insistence     // how operations wait for a target that is away
	restoreEvery int64          // bytes from one checkpoint of a restore to the next
	leaveWithin  time.Duration  // how long a client that has ended is waited for
	room         roomWatch
	copy         catalogCopy
	courtesy     *courtesy
	turn         object.Turn // of operations: courtesy's
	closing      sync.Once

	attaching sync.Mutex // one device comes or goes at a time

	mu       sync.Mutex // guards what follows; held for instants only
	closed   bool
	volumes  map[layers.ID]*volume
	devices  map[layers.ID]*attached // by attachment
	targets  map[layers.ID]*target
	running  map[layers.ID]*operation
	restores map[layers.ID]int // by backup: restores that read it
}

// Start takes the state folder, brings what a crash left behind into order and
// opens the volumes. A folder that another daemon holds is an Error of reason
// InUse with its pid. A volume that cannot be opened is shown with the reason
// and does not stop the others.
func Start(ctx context.Context, c Config) (*Agent, error) {
	if c.OpenStore == nil {
		return nil, errors.New("agent: Config.OpenStore is missing")
	}
	if c.CreateStore == nil {
		c.CreateStore = c.OpenStore
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, fail(Unavailable, "make the state folder: %w", err)
	}
	lock, err := lockState(c.State)
	if err != nil {
		return nil, err
	}
	a, err := open(ctx, c, lock)
	if err != nil {
		lock.release()
		return nil, err
	}
	return a, nil
}

// open does what Start does once the folder is taken.
func open(ctx context.Context, c Config, lock *stateLock) (*Agent, error) {
	for _, dir := range []string{"volumes", "secrets"} {
		if err := os.MkdirAll(filepath.Join(c.State, dir), 0o700); err != nil {
			return nil, fail(Unavailable, "make the state folder: %w", err)
		}
	}
	removeHalfSecrets(c.State)
	guardSecrets(c.State, c.Log)
	cat, err := catalog.Open(catalogDir(c.State), c.Log)
	if err != nil {
		return nil, fail(Unavailable, "%w. If it is damaged, make a new one with: varve catalog rebuild", err)
	}
	a := newAgent(ctx, c, lock, cat)
	if err := a.adoptCopy(); err != nil {
		return nil, errors.Join(err, cat.Close())
	}
	if err := a.recover(ctx); err != nil {
		a.releaseDevices() // The first error says more.
		a.closeVolumes()
		cat.Close()
		return nil, err
	}
	a.work.Go(func() { a.watchRoom(a.ctx) })
	a.work.Go(func() { a.keepCopy(a.ctx) })
	a.work.Go(func() { a.verifyTargets(a.ctx) })
	if c.PollInterval > 0 {
		a.work.Go(func() { a.pollTargets(a.ctx, c.PollInterval) })
	}
	a.undoQuiets()
	return a, nil
}

func catalogDir(state string) string { return filepath.Join(state, "catalog") }

// newAgent returns an agent that has nothing open but the catalog.
func newAgent(ctx context.Context, c Config, lock *stateLock, cat *catalog.Catalog) *Agent {
	if c.GuestRequests == nil {
		c.GuestRequests = func() int64 { return 0 }
	}
	if c.Host == "" {
		c.Host, _ = os.Hostname() // It is only a remark.
	}
	a := &Agent{
		config:       c,
		log:          c.Log,
		lock:         lock,
		catalog:      cat,
		started:      time.Now(),
		moving:       make(chan struct{}, maxMoving),
		insistence:   cmp.Or(c.insistence, usualInsistence),
		restoreEvery: cmp.Or(c.restoreEvery, restoreEvery),
		leaveWithin:  usualLeave,
		courtesy:     &courtesy{requests: c.GuestRequests},
		volumes:      map[layers.ID]*volume{},
		devices:      map[layers.ID]*attached{},
		targets:      map[layers.ID]*target{},
		running:      map[layers.ID]*operation{},
		restores:     map[layers.ID]int{},
	}
	a.turn = a.courtesy.turn
	a.copy.changed = make(chan struct{}, 1)
	a.ctx, a.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return a
}

// Close stops the running operations and records that they were stopped,
// flushes and closes the volumes, and gives up the state folder. Exports and
// images should be closed first; what is still open fails from now on. Only the
// first call counts.
func (a *Agent) Close() error {
	var err error
	a.closing.Do(func() {
		a.mu.Lock()
		a.closed = true
		a.mu.Unlock()
		a.stop(errStopped)
		a.work.Wait()
		err = errors.Join(a.closeTargets(), a.releaseDevices(), a.closeVolumes(), a.writeCopy(), a.catalog.Close(), a.lock.release())
	})
	return err
}

// view runs f on one state of the catalog.
func (a *Agent) view(f func(*catalog.Tx) error) error { return afterClose(a.catalog.View(f)) }

// update runs f as one change of the catalog.
func (a *Agent) update(f func(*catalog.Tx) error) error {
	err := a.catalog.Update(f)
	if err == nil {
		a.copy.outdated()
	}
	return afterClose(err)
}

func afterClose(err error) error {
	if errors.Is(err, catalog.ErrClosed) {
		return errStopped
	}
	return err
}

// change reads one record, lets f alter it and writes it back, in tx.
func change[T any](tx *catalog.Tx, t catalog.Table[T], id layers.ID, f func(*T)) error {
	record, err := t.Get(tx, id)
	if err != nil {
		return err
	}
	f(&record)
	return t.Put(tx, record)
}

// all returns the records of a table, oldest first. Damaged ones are logged and
// left out.
func all[T any](a *Agent, tx *catalog.Tx, t catalog.Table[T]) []T {
	var records []T
	for record, err := range t.All(tx) {
		if err != nil {
			a.log.Error("a record is left out", "error", err)
			continue
		}
		records = append(records, record)
	}
	return records
}

// list is all, in a transaction of its own.
func list[T any](a *Agent, t catalog.Table[T]) ([]T, error) {
	var records []T
	err := a.view(func(tx *catalog.Tx) error {
		records = all(a, tx, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	return records, nil
}
