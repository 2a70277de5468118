package nbd

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"varve/layers"
)

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
//
//	name length 32 | name | count 32 | queries, each length 32 | text
//
// SET selects by full names. LIST without queries lists all; a query that ends
// with a colon is for all names that begin with it. A failed SET selects
// nothing.
func (h *handshake) metaContext(option uint32, data []byte) error {
	set := option == optSetMetaContext
	if set {
		h.selected = nil
	}
	if !h.structured {
		return fmt.Errorf("%w: structured replies come first", errInvalid)
	}
	name, rest, err := cutString(data)
	if err != nil {
		return err
	}
	queries, err := cutQueries(rest)
	if err != nil {
		return err
	}
	export, err := h.open(name)
	if err != nil {
		return err
	}
	defer h.closeExport(export.Export)
	asked := func(name string) bool {
		if slices.Contains(queries, name) || len(queries) == 0 && !set {
			return true
		}
		return !set && slices.ContainsFunc(queries, func(q string) bool {
			return strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		})
	}
	var selected []string
	for _, c := range export.contexts() {
		if !asked(c.Name) {
			continue
		}
		id := uint32(0)
		if set {
			if len(selected) == maxContexts {
				return fmt.Errorf("%w: at most %d contexts can be selected", errTooBig, maxContexts)
			}
			selected = append(selected, c.Name)
			id = uint32(len(selected))
		}
		p := binary.BigEndian.AppendUint32(nil, id)
		h.add(option, repMetaContext, append(p, c.Name...))
	}
	if set {
		h.selected, h.contextFor = selected, name
	}
	h.add(option, repAck, nil)
	return nil
}

// contexts are all that the export has, without those whose names cannot be
// told.
func (e offer) contexts() []Context {
	all := append([]Context{allocationOf(e.Device)}, e.Contexts...)
	return slices.DeleteFunc(all, func(c Context) bool { return !validName(c.Name) })
}

// context returns the context called name. One that has gone since it was
// selected keeps its number, and fails.
func (e offer) context(name string) Context {
	for _, c := range e.contexts() {
		if c.Name == name {
			return c
		}
	}
	return Context{name, func(int64, int64) iter.Seq2[layers.Run, error] {
		return func(yield func(layers.Run, error) bool) {
			yield(layers.Run{}, fmt.Errorf("metadata context %s: %w", name, fs.ErrNotExist))
		}
	}}
}
