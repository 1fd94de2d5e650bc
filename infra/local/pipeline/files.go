package pipeline

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// setting is a line of the settings file.
type setting struct {
	name, value string
}

// writeSettings writes the file line by line: NAME=VALUE.
func writeSettings(path string, settings []setting) error {
	var b strings.Builder
	for _, s := range settings {
		fmt.Fprintf(&b, "%s=%s\n", s.name, s.value)
	}
	return writeWhole(path, b.String())
}

// secret returns the content of the file, which generate gives when it isn't there yet.
func secret(path string, generate func() string) (string, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := generate()
		return fresh, writeWhole(path, fresh+"\n")
	}
	return strings.TrimSpace(string(content)), err
}

// writeWhole writes a file that only this user may read, because it may hold keys. It appears whole or not at all:
// programs may be reading the one of the last run.
func writeWhole(path, content string) error {
	unfinished := path + ".new"
	if err := os.WriteFile(unfinished, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}
