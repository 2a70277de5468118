// Package repo is the backup repository: it copies layers into an object
// store and reads them back as layers.
package repo
