//go:build race

package layers

// sparse is how many times fewer crashes are tried than otherwise. The race
// detector makes a crash ten times slower and finds nothing in one: the disk and
// whoever inspects what is left of it take turns.
const sparse = 8
