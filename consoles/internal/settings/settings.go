// Package settings reads what the consoles can be told in several ways: by a flag, by an environment variable, or by a file
// of such variables, in this order.
package settings

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

// FileFlag names files of variables, and FileVariable one where there is no such flag.
const (
	FileFlag     = "env-file"
	FileVariable = "HUBJOBS_ENV_FILE"
)

// Setting is a text that has a flag, a variable and a default.
type Setting struct {
	Flag, Variable, Default, Usage string
}

// CLI returns the setting's flag.
func (s Setting) CLI() cli.Flag {
	return &cli.StringFlag{Name: s.Flag, DefaultText: s.Default, Usage: s.Usage + " [$" + s.Variable + "]"}
}

// Read returns the value of the flag, wherever it stands in the command line, else that of the variable, else the default.
func (s Setting) Read(c *cli.Context, variables Variables) string {
	if at := Nearest(c, s.Flag); at.IsSet(s.Flag) {
		return at.String(s.Flag)
	}
	if value := variables.Get(s.Variable); value != "" {
		return value
	}
	return s.Default
}

// Nearest returns the part of the command line that has the flag and is nearest to its end: that after the subcommand or that
// before it. Without such a flag it returns c.
func Nearest(c *cli.Context, flag string) *cli.Context {
	for _, part := range c.Lineage() {
		if part.IsSet(flag) {
			return part
		}
	}
	return c
}

// Files returns the flag for files of variables.
func Files() cli.Flag {
	return &cli.StringSliceFlag{Name: FileFlag, Usage: "`FILE` of variables, as NAME=VALUE lines, that count where the environment has none; can be repeated [$" + FileVariable + "]"}
}

// Variables are those of the environment, and behind them those of files.
type Variables struct {
	getenv func(string) string
	files  map[string]string
}

// Load returns the variables of the environment and of the files. Of two files the last one counts.
func Load(c *cli.Context, getenv func(string) string) (Variables, error) {
	v := Variables{getenv: getenv, files: map[string]string{}}
	names := Nearest(c, FileFlag).StringSlice(FileFlag)
	if name := getenv(FileVariable); name != "" && len(names) == 0 {
		names = []string{name}
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return Variables{}, fmt.Errorf("read variables: %w", err)
		}
		if err := v.add(string(content)); err != nil {
			return Variables{}, fmt.Errorf("read variables: %s: %w", name, err)
		}
	}
	return v, nil
}

// Get returns the variable's value, empty if it has none.
func (v Variables) Get(name string) string {
	if value := v.getenv(name); value != "" {
		return value
	}
	return v.files[name]
}

var errLine = errors.New("is not of the form NAME=VALUE")

// add takes the variables of a file. Values may be in quotes, as a shell needs them for a connection string.
func (v Variables) add(content string) error {
	number := 0
	for line := range strings.Lines(content) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found || name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("line %d %w", number, errLine) // without the line, which may hold a secret
		}
		v.files[name] = unquote(value)
	}
	return nil
}

func unquote(value string) string {
	if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
		return value[1 : n-1]
	}
	return value
}
