package store

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

// table holds changes that are in the log and not yet in the state file. What
// was put and deleted again between two checkpoints, such as a message that was
// received at once, costs the state file next to nothing.
//
// Keys are kept by group, so that those of one entity are found without a look
// at all.
type table struct {
	cleared map[string]struct{}          // prefixes deleted, before the entries were made
	groups  map[string]map[string][]byte // by key; a nil value means deleted
}

func newTable() *table {
	return &table{cleared: make(map[string]struct{}), groups: make(map[string]map[string][]byte)}
}

// groupOf is the part of a key up to the second slash: kind and name of what the
// key belongs to. Of a prefix that has fewer slashes it is the whole.
func groupOf(key string) (group string, whole bool) {
	if i := strings.IndexByte(key, '/'); i >= 0 {
		if j := strings.IndexByte(key[i+1:], '/'); j >= 0 {
			return key[:i+1+j+1], true
		}
	}
	return key, false
}

func (t *table) apply(op Op) {
	switch {
	case op.Prefix:
		t.clear(op.Key)
	case op.Value == nil:
		t.set(op.Key, nil)
	default:
		t.set(op.Key, op.Value)
	}
}

func (t *table) set(key string, value []byte) {
	name, _ := groupOf(key)
	group := t.groups[name]
	if group == nil {
		group = make(map[string][]byte)
		t.groups[name] = group
	}
	group[key] = value
}

func (t *table) clear(prefix string) {
	t.cleared[prefix] = struct{}{}
	t.eachGroup(prefix, func(group map[string][]byte) {
		maps.DeleteFunc(group, func(key string, _ []byte) bool { return strings.HasPrefix(key, prefix) })
	})
}

// eachGroup calls f for the groups that may hold keys with a prefix.
func (t *table) eachGroup(prefix string, f func(map[string][]byte)) {
	name, whole := groupOf(prefix)
	if whole {
		f(t.groups[name])
		return
	}
	for name, group := range t.groups {
		if strings.HasPrefix(name, prefix) {
			f(group)
		}
	}
}

// clearedBelow returns the prefixes deleted that concern keys with a prefix.
func (t *table) clearedBelow(prefix string) []string {
	var found []string
	for cleared := range t.cleared {
		if strings.HasPrefix(cleared, prefix) || strings.HasPrefix(prefix, cleared) {
			found = append(found, cleared)
		}
	}
	return found
}

func hasAnyPrefix(key string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// overlay lays the entries with a prefix over those of older tables.
func (t *table) overlay(prefix string, over map[string][]byte) {
	if cleared := t.clearedBelow(prefix); len(cleared) > 0 {
		maps.DeleteFunc(over, func(key string, _ []byte) bool { return hasAnyPrefix(key, cleared) })
	}
	t.eachGroup(prefix, func(group map[string][]byte) {
		for key, value := range group {
			if strings.HasPrefix(key, prefix) {
				over[key] = value
			}
		}
	})
}

// write writes the changes to the state file, in the order of the keys, which is
// the one that spares it most.
func (t *table) write(bucket *bbolt.Bucket) error {
	for _, prefix := range slices.Sorted(maps.Keys(t.cleared)) {
		if err := deletePrefix(bucket, []byte(prefix)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.groups)) {
		group := t.groups[name]
		for _, key := range slices.Sorted(maps.Keys(group)) {
			var err error
			if value := group[key]; value == nil {
				err = bucket.Delete([]byte(key))
			} else {
				err = bucket.Put([]byte(key), seal(key, value))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func deletePrefix(bucket *bbolt.Bucket, prefix []byte) error {
	// The keys are gathered first because a cursor skips keys when the bucket
	// changes under it.
	var keys [][]byte
	c := bucket.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && k != nil; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := bucket.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
