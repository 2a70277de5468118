package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"varve/layers"
)

// Tags of a root's summary: docs/format.md 2.8.
const (
	fieldID            = 1
	fieldVolume        = 2
	fieldParent        = 3
	fieldBoundary      = 4
	fieldSnapshot      = 5
	fieldVolumeName    = 6
	fieldName          = 7
	fieldDescription   = 8
	fieldCreated       = 9
	fieldDataTimestamp = 10
	fieldSize          = 11
	fieldLogical       = 12
	fieldChanged       = 13
	fieldStored        = 14
	fieldObjects       = 15
	fieldIncremental   = 16
	fieldSeq           = 17
	fieldEpoch         = 18
	fieldAncestors     = 19
	fieldAgent         = 20
	fieldMeta          = 21
	fieldInventory     = 22
	fieldBlockSize     = 23
	fieldPacks         = 24
	fieldHost          = 27
	fieldClaim         = 28
)

const (
	maxAncestors = 64
	maxSummary   = 64<<10 - headerSize - tagSize
	summaryRead  = 4 << 10 // bytes of a root that a listing asks for
	maxRoot      = maxSpansText

	agentText = "varve 1"
)

// A root is the object whose Put makes a backup exist.
type root struct {
	name      rootName
	backup    Backup
	ancestors []layers.ID // newest first
	packs     int64       // of data, added by this backup
	inventory *leafRef    // nil: nothing that the root does not name
	spans     *spans
	key       keyRef // that it is sealed with; of one that was read
}

// seal returns the object. It sets what the backup says about its own bytes:
// objects and stored so far, and the root; and where it stands.
func (r *root) seal(key *volumeKey, objects, stored int64) []byte {
	r.backup.Epoch, r.backup.Number = r.name.epoch, r.name.seq
	text := compress(nil, r.spans.append(nil, r.name.volume))
	r.backup.Objects, r.backup.Stored = objects+1, math.MaxInt64
	summary := len(r.summary().append(nil)) // numbers have a fixed width
	total := int64(headerSize + summary + tagSize + len(text) + tagSize)
	r.backup.Stored = stored + total

	id := newObjectID(r.backup.ID)
	h := header{
		kind: kindRoot, suite: key.suite, id: id, key: key.ref, commitment: key.commitment(id),
		inner: uint32(summary + tagSize), total: total,
	}
	b := h.append(make([]byte, 0, total))
	s := key.sealer(id)
	b = s.seal(b, r.summary().append(nil), sectionSummary, 0, b[:headerBound])
	return s.seal(b, text, sectionSpans, 1, b[:headerBound])
}

func (r *root) summary() fields {
	b := &r.backup
	f := make(fields)
	f.setID(fieldID, b.ID)
	f.setID(fieldVolume, b.Volume)
	f.setID(fieldParent, b.Parent)
	f.setID(fieldBoundary, b.Boundary)
	f.setID(fieldSnapshot, b.Snapshot)
	f.setText(fieldVolumeName, b.VolumeName)
	f.setText(fieldName, b.Name)
	f.setText(fieldDescription, b.Description)
	f.setTime(fieldCreated, b.Created)
	f.setTime(fieldDataTimestamp, b.DataTimestamp)
	f.setNumber(fieldSize, b.Size)
	f.setNumber(fieldLogical, b.Logical)
	f.setNumber(fieldChanged, b.Changed)
	f.setNumber(fieldStored, b.Stored)
	f.setNumber(fieldObjects, b.Objects)
	if b.Incremental {
		f.setNumber(fieldIncremental, 1)
	}
	f.setNumber(fieldSeq, int64(r.name.seq))
	f.setNumber(fieldEpoch, int64(r.name.epoch))
	f.setIDs(fieldAncestors, r.ancestors)
	f.setText(fieldAgent, agentText)
	f[fieldMeta] = appendPairs(nil, b.Meta)
	f[fieldInventory] = r.appendInventory(nil)
	f[fieldBlockSize] = binary.LittleEndian.AppendUint32(nil, layers.BlockSize)
	f.setNumber(fieldPacks, r.packs)
	f.setText(fieldHost, b.Host)
	f.setID(fieldClaim, b.Claim)
	return f
}

func (r *root) appendInventory(b []byte) []byte {
	if r.inventory == nil {
		return b
	}
	for i, p := range r.spans.packs {
		if p == r.inventory.pack {
			b = binary.AppendUvarint(b, uint64(i))
		}
	}
	b = binary.AppendUvarint(b, uint64(r.inventory.number))
	b = binary.AppendUvarint(b, uint64(r.inventory.off))
	return binary.AppendUvarint(b, uint64(r.inventory.stored))
}

// parseSummary reads what the summary of the root of that name says.
func parseSummary(b []byte, name rootName) (*root, fields, error) {
	f, err := parseFields(b)
	if err != nil {
		return nil, nil, fmt.Errorf("summary: %w", err)
	}
	r := &root{name: name}
	if err := r.setSummary(f); err != nil {
		return nil, nil, fmt.Errorf("summary: %w", err)
	}
	return r, f, nil
}

func (r *root) setSummary(f fields) error {
	b := &r.backup
	var errs []error
	id := func(tag uint64) layers.ID {
		v, err := f.id(tag)
		errs = append(errs, err)
		return v
	}
	number := func(tag uint64) int64 {
		v, err := f.number(tag)
		if err == nil && v < 0 {
			err = fmt.Errorf("field %d is %d", tag, v)
		}
		errs = append(errs, err)
		return v
	}
	b.ID, b.Volume, b.Parent = id(fieldID), id(fieldVolume), id(fieldParent)
	b.Boundary, b.Snapshot = id(fieldBoundary), id(fieldSnapshot)
	b.Epoch, b.Number = r.name.epoch, r.name.seq
	b.Claim, b.Host = id(fieldClaim), f.text(fieldHost)
	b.VolumeName, b.Name, b.Description = f.text(fieldVolumeName), f.text(fieldName), f.text(fieldDescription)
	b.Size, b.Logical, b.Changed = number(fieldSize), number(fieldLogical), number(fieldChanged)
	b.Stored, b.Objects = number(fieldStored), number(fieldObjects)
	b.Incremental = number(fieldIncremental) == 1
	r.packs = number(fieldPacks)

	var err error
	b.Created, err = f.time(fieldCreated)
	errs = append(errs, err)
	b.Updated = b.Created
	b.DataTimestamp, err = f.time(fieldDataTimestamp)
	errs = append(errs, err)
	b.Meta, err = parsePairs(f[fieldMeta])
	errs = append(errs, err)
	r.ancestors, err = f.ids(fieldAncestors, maxAncestors)
	errs = append(errs, err)

	if seq, epoch := number(fieldSeq), number(fieldEpoch); uint64(seq) != r.name.seq || uint64(epoch) != r.name.epoch {
		errs = append(errs, fmt.Errorf("it has number %d of epoch %d", seq, epoch))
	}
	if b.ID != r.name.backup || b.Volume != r.name.volume {
		errs = append(errs, fmt.Errorf("it is backup %s of volume %s", b.ID, b.Volume))
	}
	if size := f[fieldBlockSize]; len(size) != 4 || binary.LittleEndian.Uint32(size) != layers.BlockSize {
		errs = append(errs, fmt.Errorf("block size % x: %w", size, ErrVersion))
	}
	return errors.Join(errs...)
}

// setInventory reads where the inventory is, once the spans are known.
func (r *root) setInventory(f []byte) error {
	if len(f) == 0 {
		return nil
	}
	d := decoder{rest: f}
	i := d.upTo(int64(len(r.spans.packs)), "pack of the inventory")
	ref := leafRef{
		number: uint32(d.upTo(1<<32-2, "section")),
		off:    d.upTo(maxOffset, "offset"),
		stored: uint32(d.upTo(maxLeafText, "length")),
	}
	if d.err == nil && (i >= int64(len(r.spans.packs)) || ref.stored <= tagSize) {
		d.failf("inventory in pack %d of %d, %d bytes", i, len(r.spans.packs), ref.stored)
	}
	if err := d.end(); err != nil {
		return err
	}
	ref.pack = r.spans.packs[i]
	r.inventory = &ref
	return nil
}
