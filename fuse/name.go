package fuse

import (
	"strings"
	"unicode/utf8"

	"varve/layers"
)

// maxName is the length of the longest path element, in bytes: NAME_MAX,
// linux/limits.h.
const maxName = 255

// A named thing wants to be a path element.
type named struct {
	name string
	id   layers.ID
}

// unsuited are the bytes that a path element cannot have.
var unsuited = strings.NewReplacer("/", "_", "\x00", "_")

// element returns name, and whether it can be a path element as it is.
// Otherwise it returns something alike that can be part of one; it may be
// empty or too long.
func element(name string) (safe string, same bool) {
	switch name {
	case ".":
		return "_", false
	case "..":
		return "__", false
	}
	safe = unsuited.Replace(name)
	return safe, safe == name && name != "" && len(name) <= maxName
}

// withID returns a path element made of name and id. It ends in the ID, so
// that those of two IDs are never equal.
func withID(name string, id layers.ID) string {
	safe, _ := element(name)
	if safe == "" {
		return id.String()
	}
	suffix := "-" + id.String()
	return cut(safe, maxName-len(suffix)) + suffix
}

// cut returns at most n bytes of s, and does not cut a character in two.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n] // not UTF-8
}

// shownNames returns the path elements for things of one folder, in their
// order. They are distinct if the IDs are.
func shownNames(things []named) []string {
	shown := make([]string, len(things))
	plain := make([]bool, len(things))
	for i, t := range things {
		if shown[i], plain[i] = element(t.name); !plain[i] {
			shown[i] = withID(t.name, t.id)
		}
	}
	// A name that gets an ID may become equal to a plain one, which gets its own
	// in the next round. Each round leaves fewer plain names.
	for again := true; again; {
		again = false
		count := make(map[string]int, len(shown))
		for _, s := range shown {
			count[s]++
		}
		for i, t := range things {
			if plain[i] && count[shown[i]] > 1 {
				shown[i], plain[i], again = withID(t.name, t.id), false, true
			}
		}
	}
	return shown
}
