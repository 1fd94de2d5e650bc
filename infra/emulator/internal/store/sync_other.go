//go:build !linux

package store

import "os"

// mapSize is how much of the address space the state file gets at first: on some
// systems, the file becomes as long.
const mapSize = 0

// syncData makes what was written durable.
func syncData(f *os.File) error { return f.Sync() }

// syncDir makes changes of directory entries durable. Not all systems can sync a
// directory; those that can't do it by themselves.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync()
	return d.Close()
}
