package store

// OpenSmall is Open with segments so small that few changes make a checkpoint.
func OpenSmall(dir string) (Store, error) { return open(dir, 24<<10) }
