//go:build !amd64

package argon2id

var fast = false

// mix XORs the compression of x and y onto out: see mixGo.
func mix(out, x, y, scratch *block) { mixGo(out, x, y, scratch) }
