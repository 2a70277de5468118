package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"varve/agent/object"
)

// A checkpoint of what was read is kept after so many packs, or so long.
const (
	keepPacks = 64
	keepEvery = 10 * time.Second
)

// deep reads packs whole, those first that were not for longest.
func (a *audit) deep(ctx context.Context) error {
	order := make([]*auditPack, 0, len(a.packs))
	rest := int64(0)
	for i := range a.packs {
		p := &a.packs[i]
		if _, gone := a.whole[p.name()]; gone || p.size == 0 {
			continue // all is said, or it does not say where it ends
		}
		if !a.options.Since.IsZero() && p.sound > a.options.Since.UnixMilli() && !a.flagged[p.packID] {
			a.report.Skipped++
			continue
		}
		order = append(order, p)
		rest += p.size
	}
	slices.SortFunc(order, func(p, q *auditPack) int { return cmp.Or(cmp.Compare(p.sound, q.sound), p.compare(q.packID)) })
	a.mu.Lock()
	a.total = a.done + rest
	a.mu.Unlock()
	a.advance(0)

	book := &bookkeeper{ledger: a.options.Ledger, last: time.Now()}
	g, readCtx := errgroup.WithContext(ctx)
	todo := make(chan *auditPack)
	g.Go(func() error {
		defer close(todo)
		for _, p := range order {
			select {
			case todo <- p:
			case <-readCtx.Done():
				return context.Cause(readCtx)
			}
		}
		return nil
	})
	for range auditReads {
		g.Go(func() error {
			var buf []byte
			plain := newPlain()
			for p := range todo {
				buf = slices.Grow(buf[:0], int(min(p.size, maxPack))+1)
				if err := a.readPack(readCtx, p, buf, plain); err != nil {
					return err
				}
				a.advance(p.size)
				if err := book.enter(p, !a.isFlagged(p.packID)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if kept := book.flush(); err == nil {
		err = kept
	}
	a.tellOldest()
	return err
}

// isFlagged tells whether a pack has damage.
func (a *audit) isFlagged(pack packID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.flagged[pack]
}

// A bookkeeper tells the ledger what was read, some packs at a time: after a
// crash those since the last time are read again.
type bookkeeper struct {
	ledger Ledger

	mu    sync.Mutex
	sound []string
	last  time.Time
}

// enter takes down that a pack was read whole.
func (b *bookkeeper) enter(p *auditPack, sound bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !sound {
		p.sound = 0
		if b.ledger.Drop == nil {
			return nil
		}
		return b.ledger.Drop([]string{p.name()})
	}
	p.sound = time.Now().UnixMilli()
	b.sound = append(b.sound, p.name())
	if len(b.sound) < keepPacks && time.Since(b.last) < keepEvery {
		return nil
	}
	return b.keep()
}

func (b *bookkeeper) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keep()
}

// keep is called with mu held.
func (b *bookkeeper) keep() error {
	b.last = time.Now()
	if len(b.sound) == 0 || b.ledger.Keep == nil {
		return nil
	}
	err := b.ledger.Keep(b.sound, b.last)
	b.sound = b.sound[:0]
	if err != nil {
		return fmt.Errorf("remember what was read: %w", err)
	}
	return nil
}

// checkSection opens a section of a pack, and compares its id.
func checkSection(s *sealer, ids *blake3.Hasher, section *section, number uint32, stored, plain []byte) (err error) {
	var text []byte
	if section.kind == sectionFrame {
		f := frameRef{number: number, stored: section.stored, blocks: section.blocks, zstd: section.zstd}
		text, err = openFrame(s, &f, stored, plain)
	} else if text, err = s.open(stored, section.kind, number, nil); err == nil {
		text, err = expand(text, maxLeafText)
	}
	if err == nil && sectionID(ids, text) != section.id {
		err = errors.New("its id is another one")
	}
	return err
}

// readPack reads a pack whole into buf and checks each section of it.
func (a *audit) readPack(ctx context.Context, p *auditPack, buf, plain []byte) error {
	name := p.name()
	if p.size > maxPack {
		return a.noteAccount(p.packID, damaged(name, maxPack, fmt.Errorf("it has %d bytes, and a pack has at most %d", p.size, int64(maxPack))))
	}
	b := buf[:p.size+1]
	n, err := a.repo.store.Get(ctx, name, b, 0)
	switch {
	case err == io.EOF && int64(n) == p.size:
	case err == nil:
		return a.noteWhole(p.packID, damaged(name, p.size, fmt.Errorf("the object goes on, expected %d bytes", p.size)))
	default:
		return a.noteWhole(p.packID, readError(name, 0, n, int(p.size), err))
	}
	a.mu.Lock()
	a.report.Read++
	a.report.Bytes += p.size
	a.mu.Unlock()
	checked := new(checkedPack)
	key, err := checked.parse(ctx, a.repo, p.where, packRef{p.id, a.keys[p.key]}, b[:p.size])
	if err != nil {
		return a.noteAccount(p.packID, err)
	}
	s, ids := key.sealer(p.id), newKeyed(key.ids)
	for i := range checked.sections {
		section, off := &checked.sections[i], checked.offsets[i]
		var err error
		ended := object.InTurn(ctx, func(context.Context) error {
			err = checkSection(s, ids, section, uint32(i), b[off:off+int64(section.stored)], plain)
			return nil
		})
		if ended != nil {
			return ended
		}
		if err := a.noteSection(ctx, p, uint32(i), section.kind, off, err); err != nil {
			return err
		}
		a.mu.Lock()
		a.report.Frames++
		a.mu.Unlock()
	}
	return nil
}

// noteSection is noteIn for a section that is not what it was, unless a
// relocation has it elsewhere.
func (a *audit) noteSection(ctx context.Context, p *auditPack, number uint32, kind sectionKind, off int64, err error) error {
	if err == nil {
		return nil
	}
	err = damaged(p.name(), off, fmt.Errorf("section %d: %w", number, err))
	for _, o := range a.repo.moves.known(a.keys[p.key].volume) {
		if to, ok := o.find(sectionKey{p.id, number}); ok && to.kind == kind {
			if _, other := a.repo.openPlace(ctx, &to); other == nil {
				return nil
			}
		}
	}
	return a.noteIn(p.packID, err)
}

// sample reads frames of packs that are drawn, the more often the longer the
// pack is and the longer ago it was read whole.
func (a *audit) sample(ctx context.Context) error {
	now := time.Now().UnixMilli()
	weights := make([]float64, len(a.packs)) // each with those before it
	sum := 0.0
	for i := range a.packs {
		p := &a.packs[i]
		if _, gone := a.whole[p.name()]; !gone && p.where == inData {
			sum += float64(p.size) * float64(max(now-p.sound, time.Hour.Milliseconds()))
		}
		weights[i] = sum
	}
	if sum == 0 {
		return nil
	}
	drawn := make(map[int]int)
	for range a.options.Samples {
		i, _ := slices.BinarySearch(weights, rand.Float64()*sum)
		drawn[min(i, len(weights)-1)]++
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreFetches)
	for i, count := range drawn {
		g.Go(func() error { return a.samplePack(ctx, &a.packs[i], count) })
	}
	return g.Wait()
}

// samplePack reads some sections of a pack, or all if it has no more.
func (a *audit) samplePack(ctx context.Context, p *auditPack, count int) error {
	ref := packRef{p.id, a.keys[p.key]}
	var checked checkedPack
	if err := checked.read(ctx, a.repo, p.where, ref, true); err != nil {
		return a.noteAccount(p.packID, err)
	}
	key, err := a.repo.volumeKey(ctx, ref.key)
	if err != nil {
		return a.noteIn(p.packID, err)
	}
	name, s, ids := p.name(), key.sealer(p.id), newKeyed(key.ids)
	order := rand.Perm(len(checked.sections))
	for _, i := range order[:min(count, len(order))] {
		section, off := &checked.sections[i], checked.offsets[i]
		stored := make([]byte, section.stored)
		if err := a.repo.readRange(ctx, name, stored, off); err != nil {
			if err := a.noteIn(p.packID, err); err != nil {
				return err
			}
			continue
		}
		err := checkSection(s, ids, section, uint32(i), stored, nil)
		if err := a.noteSection(ctx, p, uint32(i), section.kind, off, err); err != nil {
			return err
		}
		a.mu.Lock()
		a.report.Frames++
		a.report.Bytes += int64(section.stored)
		a.mu.Unlock()
		a.advance(int64(section.stored))
	}
	return nil
}
