package repo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	// ErrKey means that no key slot opens with the passphrase.
	ErrKey = errors.New("wrong key")
	// ErrVersion means a format that a newer Varve wrote.
	ErrVersion = errors.New("unknown format version")
	// ErrCorrupt means that an object is damaged, missing or not the one that
	// was written under its name.
	ErrCorrupt = errors.New("corrupt")
	// ErrParentGone means that the parent of an incremental backup is not in
	// the repository, or is deleted: a full backup is the way on.
	ErrParentGone = errors.New("parent backup is gone")
	// ErrClosed means that the Repo or the Layer was closed.
	ErrClosed = errors.New("closed")
)

// Key opens a repository. The zero Key opens one that is not encrypted.
type Key struct {
	Passphrase string
}

// Params are chosen when a repository is made, and stay.
type Params struct {
	NoEncryption bool   // anybody who can read the store can read the backups
	Label        string // for people; at most 255 bytes of UTF-8

	cost       argonCost // zero: defaultCost; tests take less
	repository layers.ID // zero: a new one
}

// A Repo is an open repository. It is safe for concurrent use.
type Repo struct {
	store object.Store
	head  *head
	keys  *keyring
	index *index
	cache *cache

	fetches chan struct{} // one for each request for frames that runs

	// life ends with Close. Fetches run in it rather than in the context of
	// the reader that began them, since others may wait for the same bytes.
	life context.Context
	end  context.CancelCauseFunc

	packTarget int // bytes; packTarget unless a test wants small packs
	rootBudget int // bytes; rootBudget unless a test wants small roots
	splitLeaf  int // bytes; splitLeaf unless a test wants many leaves
}

// Init makes a repository in the store and opens it. A store that already has
// one is refused with ErrExists; without Params.NoEncryption the key needs a
// passphrase.
//
// The slot is written before the head, whose Put makes the repository. Two
// hosts that do this at the same instant are told apart by reading the head
// back; a store that can't refuse to replace an object leaves a small gap.
func Init(ctx context.Context, s object.Store, k Key, p Params) (*Repo, error) {
	if err := refuseUsed(ctx, s); err != nil {
		return nil, fmt.Errorf("init repository: %w", err)
	}
	h := &head{suite: suiteAES, level: levelFastest, id: p.repository, created: time.Now(), containers: 1, label: p.Label}
	if h.id.IsZero() {
		h.id = layers.NewID()
	}
	var master [32]byte
	switch {
	case p.NoEncryption && k.Passphrase != "":
		return nil, fmt.Errorf("init repository: %w: a passphrase was given for a repository without encryption; leave one of them out", ErrKey)
	case p.NoEncryption:
		h.suite, master = suiteOpen, openMaster(h.id)
	case k.Passphrase == "":
		return nil, fmt.Errorf("init repository: %w: a passphrase is needed; only a repository made without encryption has none", ErrKey)
	default:
		rand.Read(master[:]) // never fails: crypto/rand
	}
	if err := h.validate(); err != nil {
		return nil, fmt.Errorf("init repository: %w", err)
	}
	if h.suite != suiteOpen {
		cost := p.cost
		if cost == (argonCost{}) {
			cost = defaultCost
		}
		slot := newSlot(h.id, h.id, k.Passphrase, cost, master)
		if err := s.Put(ctx, slotName(slot.id), slot.append(nil)); err != nil {
			return nil, fmt.Errorf("init repository: write key slot: %w", err)
		}
	}
	r := newRepo(s, h, master)
	if err := s.Put(ctx, headName, h.append(nil, r.keys.head())); err != nil {
		return nil, fmt.Errorf("init repository: write head: %w", err)
	}
	found, _, err := readHead(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("init repository: %w", err)
	}
	if found.id != h.id {
		return nil, fmt.Errorf("init repository: %w: another host made repository %s at the same time; open that one", ErrExists, found.id)
	}
	return r, nil
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
	switch {
	case h.suite == suiteOpen && k.Passphrase != "":
		return nil, fmt.Errorf("open repository %s: %w: it is not encrypted, but a passphrase was given; if it should be encrypted, somebody replaced it, otherwise leave the passphrase out", h.id, ErrKey)
	case h.suite == suiteOpen:
	case k.Passphrase == "":
		return nil, fmt.Errorf("open repository %s: %w: it is encrypted; give its passphrase", h.id, ErrKey)
	default:
		if master, err = unlock(ctx, s, h, k.Passphrase); err != nil {
			return nil, fmt.Errorf("open repository %s: %w", h.id, err)
		}
	}
	r := newRepo(s, h, master)
	if err := verifyHead(b, r.keys.head()); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", h.id, damaged(headName, 0, err))
	}
	return r, nil
}

func newRepo(s object.Store, h *head, master [32]byte) *Repo {
	life, end := context.WithCancelCause(context.Background())
	return &Repo{
		store: s, head: h, keys: newKeyring(h.suite, h.id, master),
		index: newIndex(), cache: newCache(cacheBytes), fetches: make(chan struct{}, fetchesMax),
		life: life, end: end, packTarget: packTarget, rootBudget: rootBudget, splitLeaf: splitLeaf,
	}
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

// maxSlots bounds the guesses at the passphrase, each of which costs as much
// as the slot says.
const maxSlots = 16

// unlock finds the slot that the passphrase opens. The first slot has the
// repository's ID, so that no listing, which may lag, is needed for it.
func unlock(ctx context.Context, s object.Store, h *head, passphrase string) ([32]byte, error) {
	names := []string{slotName(h.id)}
	read, damage := 0, error(nil)
	for i := 0; i < len(names) && i < maxSlots; i++ {
		slot, err := readSlot(ctx, s, h, names[i])
		switch {
		case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion):
			damage = errors.Join(damage, err)
		case err != nil:
			return [32]byte{}, err
		case slot != nil:
			read++
			if master, ok := slot.open(passphrase); ok {
				return master, nil
			}
		}
		if i > 0 {
			continue
		}
		for info, err := range s.List(ctx, slotPrefix) {
			if err != nil {
				return [32]byte{}, fmt.Errorf("list key slots: %w", err)
			}
			if info.Name != names[0] {
				names = append(names, info.Name)
			}
		}
	}
	switch {
	case read > 0 && damage != nil:
		return [32]byte{}, fmt.Errorf("%w: the passphrase opens none of the key slots that can be read: %w", ErrKey, damage)
	case read > 0:
		return [32]byte{}, fmt.Errorf("%w: the passphrase opens none of the key slots; check it, and that this is the right repository", ErrKey)
	case damage != nil:
		return [32]byte{}, damage
	}
	return [32]byte{}, damaged(names[0], 0, errors.New("the object is missing, and so are all other key slots"))
}

// readSlot returns nil for a slot that was revoked, or left over by another
// Init.
func readSlot(ctx context.Context, s object.Store, h *head, name string) (*slot, error) {
	b, err := readLimited(ctx, s, name, slotSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key slot: %w", err)
	}
	slot, err := parseSlot(b)
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	if slot.repository != h.id || slotName(slot.id) != name {
		return nil, nil
	}
	return slot, nil
}

// ID names the repository. It never changes.
func (r *Repo) ID() layers.ID { return r.head.id }

// Label is what Params said.
func (r *Repo) Label() string { return r.head.label }

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
