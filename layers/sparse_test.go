//go:build !race

package layers

// sparse is how many times fewer crashes are tried than otherwise.
const sparse = 1
