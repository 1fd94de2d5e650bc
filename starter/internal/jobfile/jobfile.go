// Package jobfile reads job files: a job's name, steps and options as YAML or JSON.
//
//	name: Nightly model
//	steps:
//	  - Read all the data
//	  - Train the model
//	options:
//	  stepTime: 2s
//	  timeout: 1h
//
// Nothing in a file is ignored: what isn't known is an error that names its line.
package jobfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/hubjobs/hubjobs/job"
)

// maxSize is far above any job that can be run: 2,000 steps of 256 characters.
const maxSize = 4 << 20

// File is what a job file says. What it doesn't say is zero.
type File struct {
	Name    string
	Steps   []string
	Options job.Options

	path     string
	nameLine int
	listLine int // of the list of steps; 0: there is none
	lines    []int
}

// Error is a mistake in a job file.
type Error struct {
	Path string
	Line int // from 1; 0 when the file as a whole is meant
	Err  error
}

// Error returns "file:line: what is wrong".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.Path, e.Line, e.Err)
}

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// Read reads the job file at path. A file named *.json, or one that starts with "{", is JSON, any other YAML.
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the job file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the job file: %w", err)
	}
	if len(text) > maxSize {
		return nil, &Error{Path: path, Err: fmt.Errorf("the file is over %d MiB", maxSize>>20)}
	}
	return Parse(path, text)
}

// Parse reads the text of a job file; path stands in errors.
func Parse(path string, text []byte) (*File, error) {
	root, err := parse(path, text)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Path = path
			return nil, e
		}
		return nil, &Error{Path: path, Err: err}
	}
	file := &File{path: path}
	if err := file.document(root); err != nil {
		return nil, err
	}
	return file, nil
}

func parse(path string, text []byte) (*yaml.Node, error) {
	trimmed := bytes.TrimSpace(text)
	switch {
	case len(trimmed) == 0:
		return nil, errors.New("the file is empty")
	case strings.EqualFold(filepath.Ext(path), ".json"), trimmed[0] == '{':
		return parseJSON(text)
	}
	return parseYAML(text)
}

func parseYAML(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	if err := dec.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, fromYAML(err)
	}
	var more yaml.Node
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, &Error{Line: more.Line, Err: errors.New("there is a second document: one file is one job")}
	case !errors.Is(err, io.EOF):
		return nil, fromYAML(err)
	}
	return document.Content[0], nil
}

// fromYAML takes the line out of the library's text ("yaml: line 3: did not find ..."), its only place.
func fromYAML(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if n, _ := fmt.Sscanf(text, "line %d:", &line); n == 1 {
		_, text, _ = strings.Cut(text, ": ")
	}
	return &Error{Line: line, Err: errors.New(text)}
}

// Job makes the job of the file, or says which line keeps it from being one. A name or steps that are given here win
// over the file's.
func (f *File) Job(id, name string, steps []string) (job.Job, error) {
	line := 0
	if name == "" {
		name, line = f.Name, f.nameLine
	}
	ownSteps := len(steps) == 0
	if ownSteps {
		steps = f.Steps
	}
	j, err := job.New(id, name, steps)
	if err == nil {
		return j, nil
	}
	if _, nameErr := job.New(id, name, []string{job.StepDone}); nameErr != nil {
		if line == 0 {
			return job.Job{}, nameErr
		}
		return job.Job{}, f.at(line, err)
	}
	if !ownSteps {
		return job.Job{}, err
	}
	return job.Job{}, f.at(f.lineOfStep(id, name), err)
}

// lineOfStep returns the line of the first step that makes a list of steps invalid, or that of the list.
func (f *File) lineOfStep(id, name string) int {
	for i, step := range f.Steps {
		if _, err := job.New(id, name, []string{step}); err != nil {
			return f.lines[i]
		}
	}
	return f.listLine
}

func (f *File) at(line int, err error) error { return &Error{Path: f.path, Line: line, Err: err} }
