// Package envfile reads settings from the environment and from the files that a local run writes for others
// ("hubjobs.env", "emulator.env"): lines of NAME=VALUE. Values may be secrets, so no error ever quotes one.
//
// Such a file is not for a shell: a value may hold ";" and "&", and has no quotes around it.
package envfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	// Default is read when no other file is named and it exists: what a local run leaves in the folder it started in.
	Default = ".hubjobs/hubjobs.env"

	// Variable is the environment variable that names another file. It counts in the environment alone.
	Variable = "HUBJOBS_ENV_FILE"
)

// Settings are names and values from the environment and, for what that doesn't have, from a file. It fits
// envconfig.EnvLookup of the Temporal SDK.
type Settings struct {
	file   string
	values map[string]string
	order  []string
}

// Load reads the environment, in the form of os.Environ, and the file of that name. Without a name it is the file that
// Variable names, and without that, Default, which may be missing. An empty variable of the environment counts as one
// that isn't there.
func Load(environ []string, file string) (*Settings, error) {
	s := &Settings{values: make(map[string]string)}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" && value != "" {
			s.add(name, value)
		}
	}
	if file == "" {
		file = s.values[Variable]
	}
	name := file
	if name == "" {
		name = Default
	}
	text, err := os.ReadFile(name)
	switch {
	case file == "" && errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("read settings: %w", err)
	}
	s.file = name
	return s, s.parse(name, text)
}

// add keeps the first value of a name.
func (s *Settings) add(name, value string) {
	if _, ok := s.values[name]; ok {
		return
	}
	s.values[name] = value
	s.order = append(s.order, name)
}

func (s *Settings) parse(file string, text []byte) error {
	scanner := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("%s:%d: this is not NAME=VALUE", file, n)
		}
		if value = unquote(strings.TrimSpace(value)); value != "" {
			s.add(name, value)
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// unquote takes off one pair of quotes around the whole value.
func unquote(value string) string {
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		return value[1 : n-1]
	}
	return value
}

// File returns the name of the file that was read, or an empty string when there was none.
func (s *Settings) File() string { return s.file }

// Get returns the value of a name, or an empty string.
func (s *Settings) Get(name string) string { return s.values[name] }

// LookupEnv returns the value of a name, and whether there is one.
func (s *Settings) LookupEnv(name string) (string, bool) {
	value, ok := s.values[name]
	return value, ok
}

// Environ returns all settings in the form of os.Environ.
func (s *Settings) Environ() []string {
	all := make([]string, 0, len(s.order))
	for _, name := range s.order {
		all = append(all, name+"="+s.values[name])
	}
	return all
}
