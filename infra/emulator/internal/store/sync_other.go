//go:build !linux

package store

import "os"

// mapSize is how much of the address space the state file gets at first: on some
// systems, the file becomes as long.
const mapSize = 0

// syncData makes what was written durable.
func syncData(f *os.File) error { return f.Sync() }
