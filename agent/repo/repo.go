package repo

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// Version is the format version that this package writes and reads:
// docs/format.md, "Repository".
const Version = 1

var (
	// ErrNoRepository means that the store holds no repository.
	ErrNoRepository = errors.New("no repository")
	// ErrExists means that the store holds a repository already.
	ErrExists = errors.New("repository exists")
	// ErrKey means that no key slot opens with the passphrase or key file, or
	// that they are missing.
	ErrKey = errors.New("wrong key")
	// ErrVersion means a format that a newer Varve wrote.
	ErrVersion = errors.New("unknown format version")
	// ErrCorrupt means that an object is damaged, missing or not the one that
	// was written under its name.
	ErrCorrupt = errors.New("corrupt")
	// ErrProtected means that a backup is kept from being deleted.
	ErrProtected = errors.New("the backup is protected")
	// ErrParentGone means that the parent of an incremental backup is not in
	// the repository, or is deleted: a full backup is the way on.
	ErrParentGone = errors.New("parent backup is gone")
	// ErrParentDamaged means that the parent's root or a part of its map cannot
	// be read: an incremental backup on it would have lost the same. It comes
	// with ErrCorrupt.
	ErrParentDamaged = errors.New("parent backup has lost data")
	// ErrAnother means that a store holds another repository than before.
	ErrAnother = errors.New("another repository is there now")
	// ErrStale means that a backup could not show for so long that it is being
	// made that what it stored may be gone. Create may go on from its last
	// Checkpoint: it looks what is there.
	ErrStale = errors.New("the session could not be renewed")
	// ErrClosed means that the Repo or the Layer was closed.
	ErrClosed = errors.New("closed")
)

// Params are chosen when a repository is made, and stay.
type Params struct {
	NoEncryption bool        // anybody who can read the store can read the backups
	Label        string      // for people; at most 255 bytes of UTF-8
	Compression  Compression // of backups that ask for none; zero: Fastest

	// Recovery opens the repository as well, if it is not zero. Whoever makes
	// the repository keeps it elsewhere.
	Recovery RecoveryKey

	cost       argonCost // zero: defaultCost; tests take less
	repository layers.ID // zero: a new one
}

// A Repo is an open repository. It is safe for concurrent use.
type Repo struct {
	store  object.Store
	head   *head
	keys   *keyring
	opened atomic.Pointer[slot] // the slot in use; nil without encryption
	index  *index
	claims *claims

	captions *captions
	cache    *cache
	reach    *reach
	moves    *moves

	fetches chan struct{} // one for each request for frames that runs

	// life ends with Close. Fetches run in it rather than in the context of
	// the reader that began them, since others may wait for the same bytes.
	life context.Context
	end  context.CancelCauseFunc

	cost       argonCost // of new slots
	mergePacks int       // mergePacks unless a test merges sooner
	packTarget int       // bytes; packTarget unless a test wants small packs
	rootBudget int       // bytes; rootBudget unless a test wants small roots
	splitLeaf  int       // bytes; splitLeaf unless a test wants many leaves

	now func() time.Time // time.Now unless a test has a clock that lies
}

// Init makes a repository in the store and opens it. A store that already has
// one is refused with ErrExists; without Params.NoEncryption a key is needed.
//
// The slots are written before the head, whose Put makes the repository. Two
// hosts that do this at the same instant are told apart by reading the head
// back; a store that can't refuse to replace an object leaves a small gap.
func Init(ctx context.Context, s object.Store, k Key, p Params) (*Repo, error) {
	r, err := initialize(ctx, s, k, p)
	if err != nil {
		return nil, fmt.Errorf("init repository: %w", err)
	}
	return r, nil
}

func initialize(ctx context.Context, s object.Store, k Key, p Params) (*Repo, error) {
	if err := refuseUsed(ctx, s); err != nil {
		return nil, err
	}
	h := &head{suite: suiteAES, level: cmp.Or(p.Compression, Fastest), id: p.repository, created: time.Now(), containers: 1, label: p.Label}
	if h.id.IsZero() {
		h.id = layers.NewID()
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	switch {
	case p.NoEncryption && !k.empty():
		return nil, fmt.Errorf("%w: a key was given for a repository without encryption; leave one of them out", ErrKey)
	case !p.NoEncryption && k.empty():
		return nil, fmt.Errorf("%w: a passphrase or a key file is needed; only a repository made without encryption has none", ErrKey)
	}
	give, err := claimInit(ctx, s, h.id)
	if err != nil {
		return nil, err
	}
	defer give()
	var master [32]byte
	var first *slot
	if p.NoEncryption {
		h.suite, master = suiteOpen, openMaster(h.id)
	} else {
		rand.Read(master[:]) // never fails: crypto/rand
		if first, err = putSlots(ctx, s, h, k, p, master); err != nil {
			return nil, err
		}
	}
	r := newRepo(s, h, master, first)
	if p.cost != (argonCost{}) {
		r.cost = p.cost
	}
	if err := s.Put(ctx, headName, h.append(nil, r.keys.head())); err != nil {
		return nil, fmt.Errorf("write head: %w", err)
	}
	found, _, err := readHead(ctx, s)
	if err != nil {
		return nil, err
	}
	if found.id != h.id {
		return nil, fmt.Errorf("%w: another host made repository %s at the same time; open that one", ErrExists, found.id)
	}
	return r, nil
}

// putSlots writes the first slots: the one of the key, which has the
// repository's ID so that no listing is needed for it, and the recovery key's.
func putSlots(ctx context.Context, s object.Store, h *head, k Key, p Params, master [32]byte) (*slot, error) {
	cost := p.cost
	if cost == (argonCost{}) {
		cost = defaultCost
	}
	first, err := newSlot(h.id, h.id, k, "", cost, master, layers.ID{})
	if err != nil {
		return nil, err
	}
	all := []*slot{first}
	if p.Recovery != (RecoveryKey{}) {
		recovery, err := newSlot(layers.NewID(), h.id, Key{Passphrase: p.Recovery.String()}, "", cost, master, layers.ID{})
		if err != nil {
			return nil, err
		}
		all = append(all, recovery)
	}
	for _, slot := range all {
		if err := s.Put(ctx, slotName(slot.id), slot.append(nil)); err != nil {
			return nil, fmt.Errorf("write key slot: %w", err)
		}
	}
	return first, nil
}

// refuseUsed looks for a repository, or what is left of one.
func refuseUsed(ctx context.Context, s object.Store) error {
	h, _, err := readHead(ctx, s)
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s, made %s; open it, or choose another prefix", ErrExists, h.id, h.created.Format(time.RFC3339))
	case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion):
		return fmt.Errorf("%w: %w", ErrExists, err)
	case !errors.Is(err, ErrNoRepository):
		return err
	}
	for info, err := range s.List(ctx, volumesRoot) {
		if err != nil {
			return fmt.Errorf("look for backups: %w", err)
		}
		return fmt.Errorf("%w: there is %s, but the object %s is gone; choose another prefix", ErrExists, info.Name, headName)
	}
	return nil
}

// Open opens the repository in the store. Errors: ErrNoRepository, ErrKey,
// ErrVersion, ErrCorrupt, and those of the store.
func Open(ctx context.Context, s object.Store, k Key) (*Repo, error) {
	h, b, err := readHead(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	master := openMaster(h.id)
	var opened *slot
	switch {
	case h.suite == suiteOpen && !k.empty():
		return nil, fmt.Errorf("open repository %s: %w: it is not encrypted, but a passphrase or key file was given; if it should be encrypted, somebody replaced it, otherwise leave that out", h.id, ErrKey)
	case h.suite == suiteOpen:
	case k.empty():
		return nil, fmt.Errorf("open repository %s: %w: it is encrypted; give its passphrase or key file", h.id, ErrKey)
	default:
		if master, opened, err = unlock(ctx, s, h, k); err != nil {
			return nil, fmt.Errorf("open repository %s: %w", h.id, err)
		}
	}
	r := newRepo(s, h, master, opened)
	if err := verifyHead(b, r.keys.head()); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", h.id, damaged(headName, 0, err))
	}
	return r, nil
}

func newRepo(s object.Store, h *head, master [32]byte, opened *slot) *Repo {
	life, end := context.WithCancelCause(context.Background())
	r := &Repo{
		store: s, head: h, keys: newKeyring(h.suite, h.id, master),
		index: newIndex(), claims: newClaims(), captions: newCaptions(), cache: newCache(cacheBytes), reach: newReach(), moves: new(moves), fetches: make(chan struct{}, fetchesMax),
		life: life, end: end, cost: defaultCost, mergePacks: mergePacks, packTarget: packTarget, rootBudget: rootBudget, splitLeaf: splitLeaf,
		now: time.Now,
	}
	r.opened.Store(opened)
	return r
}

func readHead(ctx context.Context, s object.Store) (*head, []byte, error) {
	b, err := readLimited(ctx, s, headName, headLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, ErrNoRepository
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read head: %w", err)
	}
	h, err := parseHead(b)
	if err != nil {
		return nil, nil, damaged(headName, 0, err)
	}
	return h, b, nil
}

// Present makes sure that the store still holds this repository: another may have
// come into its place. Errors: ErrNoRepository, ErrAnother, ErrCorrupt, and those
// of the store. It takes one request.
func (r *Repo) Present(ctx context.Context) error {
	h, _, err := readHead(ctx, r.store)
	if err == nil && h.id != r.head.id {
		err = fmt.Errorf("%w: %s instead of %s", ErrAnother, h.id, r.head.id)
	}
	return err
}

// ID names the repository. It never changes.
func (r *Repo) ID() layers.ID { return r.head.id }

// Label is what Params said.
func (r *Repo) Label() string { return r.head.label }

// Slot is the key slot in use: a Key that names it opens with one request. It
// is zero without encryption.
func (r *Repo) Slot() layers.ID {
	if s := r.opened.Load(); s != nil {
		return s.id
	}
	return layers.ID{}
}

// A Description is what a repository's head says, for people.
type Description struct {
	ID          layers.ID
	Label       string
	Created     time.Time
	Version     int    // of the format
	Suite       string // how its content is sealed
	Compression string
}

// Describe returns what was chosen when the repository was made.
func (r *Repo) Describe() Description {
	d := Description{
		ID: r.head.id, Label: r.head.label, Created: r.head.created, Version: Version,
		Suite: "AES-256-GCM, BLAKE3", Compression: "zstd, " + r.head.level.String(),
	}
	if !r.Encrypted() {
		d.Suite = "none, BLAKE3"
	}
	return d
}

// Compression is that of backups that ask for none.
func (r *Repo) Compression() Compression { return r.head.level }

// Encrypted reports whether the repository's content is encrypted.
func (r *Repo) Encrypted() bool { return r.head.suite != suiteOpen }

// Close ends every read of the repository's layers. Backups and restores that
// run are not ended: cancel their contexts.
func (r *Repo) Close() error {
	r.end(ErrClosed)
	return nil
}

// readAll reads a small object of at most limit bytes whole.
func (r *Repo) readAll(ctx context.Context, name string, limit int64) ([]byte, error) {
	return readLimited(ctx, r.store, name, limit)
}

// readLimited reads an object of at most limit bytes with one request. A
// longer one is damage.
func readLimited(ctx context.Context, s object.Store, name string, limit int64) ([]byte, error) {
	b := make([]byte, limit+1)
	n, err := s.Get(ctx, name, b, 0)
	switch {
	case err == io.EOF:
		return b[:n], nil
	case err != nil:
		return nil, err
	}
	return nil, damaged(name, limit, fmt.Errorf("the object goes on, expected at most %d bytes", limit))
}

// readRange reads exactly len(p) bytes at off of an object that must be there.
func (r *Repo) readRange(ctx context.Context, name string, p []byte, off int64) error {
	n, err := r.store.Get(ctx, name, p, off)
	return readError(name, off, n, len(p), err)
}
