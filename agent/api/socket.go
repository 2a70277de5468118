package api

import "fmt"

// MaxSocketPath is the longest path of a unix socket in bytes: sun_path of
// unix(7) has 108, the last of them zero.
const MaxSocketPath = 107

// CheckSocketPath refuses a path that no socket can have.
func CheckSocketPath(path string) error {
	if len(path) > MaxSocketPath {
		return fmt.Errorf("socket path %s has %d bytes and Linux allows %d: choose a shorter state folder with --state or VARVE_STATE",
			path, len(path), MaxSocketPath)
	}
	return nil
}
