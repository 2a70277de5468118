package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"varve/layers"
)

// Bounds on the texts that users give, in bytes. A record has to hold them all.
const (
	maxName        = 255
	maxDescription = 4096
	maxProperties  = 8192     // keys and values together
	maxEncoded     = 20 << 10 // description and properties as JSON, which a record is
)

// checkName refuses what could not be typed, shown, or told from an id or from
// VOLUME@SNAPSHOT. what is the kind of thing that is to have the name.
func checkName(what, name string) error {
	_, idErr := layers.ParseID(name)
	problem := ""
	switch {
	case name == "":
		problem = "is empty"
	case len(name) > maxName:
		problem = fmt.Sprintf("has %d bytes, at most %d", len(name), maxName)
	case !utf8.ValidString(name), strings.ContainsRune(name, utf8.RuneError): // JSON made it of bytes that are no text
		problem = "is not text in UTF-8"
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		problem = "has characters that cannot be printed"
	case strings.ContainsAny(name, "/@"):
		problem = "contains / or @"
	case name == "." || name == ".." || strings.TrimSpace(name) != name:
		problem = "is a dot or two, or has space around it"
	case idErr == nil:
		problem = "is an id"
	default:
		return nil
	}
	if len(name) > maxName {
		name = strings.ToValidUTF8(name[:32], "") + "…"
	}
	return fail(Invalid, "the %s's name %q %s: choose another", what, name, problem)
}

// checkTexts refuses a description or properties that are not text or too long.
func checkTexts(what, description string, properties map[string]string) error {
	if len(description) > maxDescription || !utf8.ValidString(description) {
		return fail(Invalid, "the %s's description must be text of at most %d bytes", what, maxDescription)
	}
	total := 0
	for key, value := range properties {
		if key == "" || !utf8.ValidString(key) || !utf8.ValidString(value) {
			return fail(Invalid, "the %s's property %q is not text with a name", what, key)
		}
		total += len(key) + len(value)
	}
	if total > maxProperties {
		return fail(Invalid, "the %s's properties have %d bytes, at most %d", what, total, maxProperties)
	}
	encoded, err := json.Marshal([]any{description, properties})
	if err == nil && len(encoded) > maxEncoded {
		err = fmt.Errorf("they take %d bytes, at most %d", len(encoded), maxEncoded)
	}
	if err != nil {
		return fail(Invalid, "the %s's description and properties cannot be kept: %w", what, err)
	}
	return nil
}

// timeName is the name of what was made without one.
func timeName(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// instant is now, as precisely as a repository keeps times: the catalog then
// says the same before and after the target is read.
func instant() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// named is what resolve needs to know of a record.
type named struct {
	id   layers.ID
	name string
	note string // tells it from others of the name; may be empty
}

// resolve returns the record that ref, an id or a name, means.
func resolve[T any](what, ref string, records []T, of func(T) named) (T, error) {
	var found []T
	id, err := layers.ParseID(ref)
	isID := err == nil
	for _, record := range records {
		if n := of(record); isID && n.id == id || !isID && n.name == ref {
			found = append(found, record)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case ref == "":
		var none T
		return none, fail(Invalid, "no %s is named: give its name or id", what)
	case len(found) == 0:
		var none T
		return none, fail(NotFound, "no %s has the name or id %q: %s list shows those there are", what, ref, what)
	}
	var ids strings.Builder
	for _, record := range found {
		n := of(record)
		fmt.Fprintf(&ids, "\n  %s", n.id)
		if n.note != "" {
			fmt.Fprintf(&ids, "  %s", n.note)
		}
	}
	var none T
	return none, fail(Ambiguous, "%d %ss are named %q: give the id of one of them%s", len(found), what, ref, ids.String())
}
