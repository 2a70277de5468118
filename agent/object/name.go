package object

import (
	"fmt"
	"strings"
)

// MaxName is the length in bytes of the longest name of an object. With a
// prefix of [MaxPrefix] in front it fits into the 1024 bytes that both S3 and
// Swift allow.
const MaxName = 200

// MaxPrefix is the length in bytes of the longest prefix in a target's URL.
const MaxPrefix = 500

// CheckName says whether name may be the name of an object: 1 to [MaxName]
// bytes of a-z, 0-9, '-', '.' and '/', without an empty, "." or ".." element.
// The set is what every store and every file system keeps as it is.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("object name %.40q… is longer than %d bytes", name, MaxName)
	}
	if err := checkElements(name); err != nil {
		return fmt.Errorf("object name %q: %w", name, err)
	}
	for i := range len(name) {
		if !nameByte(name[i]) && name[i] != '/' {
			return fmt.Errorf("object name %q: character %q; names are made of a-z 0-9 - . and /", name, name[i])
		}
	}
	return nil
}

// CheckPrefix says whether prefix may stand between a container and the names
// of the objects: empty, or at most [MaxPrefix] bytes of letters, digits and
// "-._", in elements parted by single slashes.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > MaxPrefix {
		return fmt.Errorf("prefix %.40q… is longer than %d bytes", prefix, MaxPrefix)
	}
	if err := checkElements(prefix); err != nil {
		return fmt.Errorf("prefix %q: %w", prefix, err)
	}
	for i := range len(prefix) {
		c := prefix[i]
		if !nameByte(c) && c != '/' && c != '_' && (c < 'A' || c > 'Z') {
			return fmt.Errorf("prefix %q: character %q; prefixes are made of letters, digits, - . _ and /", prefix, c)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.'
}

func checkElements(path string) error {
	for element := range strings.SplitSeq(path, "/") {
		switch element {
		case "":
			return fmt.Errorf("an element is empty")
		case ".", "..":
			return fmt.Errorf("an element is %q", element)
		}
	}
	return nil
}

// Join returns the key of an object in a container that the store shares with
// others: prefix, slash, name; or name alone if prefix is empty. name may be
// the beginning of a name, even an empty one.
func Join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "/" + name
}
