// Package object keeps named byte strings in the places backups go: a folder,
// memory, and (in its sub-packages) OpenStack Swift and S3.
//
// A [Store] has four verbs, and that is all the repository may lean on. No
// rename, no lock, no compare and swap, no listing that is up to date.
// [Retry] and [Gate.Store] are Stores around a Store:
//
//	u, err := object.ParseURL("swift://backups/varve")
//	s, err := swift.Open(ctx, u.Container, u.Prefix, env)
//	gate := object.NewGate(8)
//	gate.SetRates(object.Rates{Upload: 10 << 20})
//	s = object.Retry(gate.Store(s), object.Policy{})
//
// The gate is inside, so that whoever waits between two tries holds no place.
//
// # Errors
//
// A Store returns [*Error]: the operation, the object, where, why, and whether
// the same call may work later. Retry goes by that last word alone and knows
// no library. fs.ErrNotExist and fs.ErrPermission are found with errors.Is and
// are never tried again. A store that is itself missing (a container that was
// deleted, a file system that is not mounted) is not fs.ErrNotExist: who asks
// for an object must not conclude that it was never written.
//
// # Concurrency
//
// Every Store here is safe for concurrent use. Two Puts of one name at once
// leave one of the two contents, whole.
//
// # Hazards
//
//  1. No name may be a folder of another: where "a" is, "a/b" cannot be. Swift
//     and S3 would not mind, folders do.
//  2. Put may have happened although it returned an error: the answer was
//     lost. Names are written once, so that trying again is harmless.
//  3. [Dir] on a network file system that hangs holds its caller in the
//     kernel; no context can end that.
package object
