package catalog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A copy holds, as lines of JSON, what nothing but the catalog knows: names and
// settings. Backups are in their targets, operations are history.
//
//	{"varve":"catalog copy","version":1}
//	{"key":"volume/01a1…","value":{…}}
//	{"end":1}
const copyKind = "catalog copy"

// copied are the keys that a copy holds, by their beginnings.
var copied = []string{Attachments.name + "/", Quotas.name, Snapshots.name + "/", Targets.name + "/", Volumes.name + "/"}

// loadPortion is how many records are put in one transaction.
const loadPortion = 500

// ErrCopyCut says that a copy ends early. What was before the cut is loaded.
var ErrCopyCut = errors.New("the copy of the catalog ends early")

type copyHeader struct {
	Kind    string `json:"varve"`
	Version int    `json:"version"`
}

type copyLine struct {
	Key   string          `json:"key,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	End   *int            `json:"end,omitempty"`
}

// Copy writes a copy of one state of the catalog. Records that cannot be read
// are left out.
func (c *Catalog) Copy(w io.Writer) error {
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	if err := lines.Encode(copyHeader{copyKind, Version}); err != nil {
		return err
	}
	n := 0
	err := c.View(func(tx *Tx) (err error) {
		for _, prefix := range copied {
			tx.scan([]byte(prefix), func(key, value []byte, damage error) bool {
				if damage != nil || !json.Valid(value) {
					return true
				}
				n++
				err = lines.Encode(copyLine{Key: string(key), Value: value})
				return err == nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("copy the catalog: %w", err)
	}
	if err := lines.Encode(copyLine{End: &n}); err != nil {
		return fmt.Errorf("copy the catalog: %w", err)
	}
	return out.Flush()
}

// Load puts the records of a copy into the catalog, over those that are there,
// and returns how many. One that ends early is ErrCopyCut, one of a newer
// Varve ErrVersion.
func (c *Catalog) Load(r io.Reader) (n int, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 2*MaxRecord) // a value and its key
	var header copyHeader
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &header) != nil || header.Kind != copyKind {
		return 0, errors.Join(lines.Err(), errors.New("this is no copy of a catalog"))
	}
	if header.Version > Version {
		return 0, fmt.Errorf("a copy of a catalog, version %d: %w", header.Version, ErrVersion)
	}
	var portion []copyLine
	for lines.Scan() {
		var line copyLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return n, errors.Join(c.load(portion), ErrCopyCut)
		}
		if line.End != nil {
			err := c.load(portion)
			if err == nil && *line.End != n {
				err = ErrCopyCut
			}
			return n, err
		}
		if !isCopied(line.Key) {
			continue
		}
		n++
		if portion = append(portion, line); len(portion) == loadPortion {
			if err := c.load(portion); err != nil {
				return n, err
			}
			portion = portion[:0]
		}
	}
	return n, errors.Join(c.load(portion), lines.Err(), ErrCopyCut)
}

func isCopied(key string) bool {
	return slices.ContainsFunc(copied, func(prefix string) bool {
		return key == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(key, prefix)
	})
}

func (c *Catalog) load(lines []copyLine) error {
	return c.Update(func(tx *Tx) error {
		for _, line := range lines {
			if err := tx.put([]byte(line.Key), line.Value); err != nil {
				return err
			}
		}
		return nil
	})
}
