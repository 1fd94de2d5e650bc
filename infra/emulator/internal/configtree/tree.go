// Package configtree reads configuration files in JSON or YAML into a tree whose
// nodes know their line, so that whoever reads the tree can say where a setting
// is that it can't accept. Every setting has to be read: what nobody asked for
// is an error too.
package configtree

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Limits keep hostile files from using up the stack or the memory.
const (
	maxBytes = 4 << 20
	maxDepth = 64
)

// Error is a problem at a line of a file.
type Error struct {
	File string
	Line int // 1, 2, ...; 0 when it concerns the file as a whole
	Text string
}

// Error implements error in the form file:line: text.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// Kind is the kind of a node.
type Kind uint8

const (
	// Scalar is a single value; null is the one with an empty text.
	Scalar Kind = iota
	Map
	List
)

var kindNames = [...]string{"a single value", "a section", "a list"}

// Node is a value in the file.
type Node struct {
	kind  Kind
	line  int
	text  string // of a scalar
	null  bool
	keys  []key // of a map
	items []*Node
	file  *file
}

type key struct {
	name  string
	line  int
	value *Node
}

// file gathers the problems of one file.
type file struct {
	name     string
	problems []error
}

// Parse reads a file. Files that begin with a brace are JSON, all others YAML.
// The name is for errors.
func Parse(name string, data []byte) (*Node, error) {
	f := &file{name: name}
	if len(data) > maxBytes {
		return nil, f.problem(0, "file has more than %d bytes", maxBytes)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // byte order mark
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseJSON(f, data)
	}
	return parseYAML(f, data)
}

func (f *file) problem(line int, format string, args ...any) error {
	return &Error{File: f.name, Line: line, Text: fmt.Sprintf(format, args...)}
}

// jsonReader builds nodes from tokens, because encoding/json doesn't tell lines.
type jsonReader struct {
	file *file
	data []byte
	dec  *json.Decoder
	at   int64 // offset up to which lines are counted
	line int
}

func parseJSON(f *file, data []byte) (*Node, error) {
	r := &jsonReader{file: f, data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	r.dec.UseNumber()
	n, err := r.value(0)
	if err == nil {
		if _, extra := r.dec.Token(); !errors.Is(extra, io.EOF) {
			err = f.problem(r.here(), "there is more behind the end of the JSON value")
		}
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// here returns the line of the token read last.
func (r *jsonReader) here() int {
	to := min(r.dec.InputOffset(), int64(len(r.data)))
	r.line += bytes.Count(r.data[r.at:to], []byte("\n"))
	r.at = to
	return r.line
}

func (r *jsonReader) token() (json.Token, int, error) {
	t, err := r.dec.Token()
	line := r.here()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			end := 1 + bytes.Count(bytes.TrimRight(r.data, " \t\r\n"), []byte("\n"))
			return nil, line, r.file.problem(end, "not valid JSON: unexpected end of the file")
		}
		return nil, line, r.file.problem(r.errorLine(err), "not valid JSON: %v", err)
	}
	return t, line, nil
}

// errorLine is the line of a syntax error, which is behind the last token.
func (r *jsonReader) errorLine(err error) int {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset <= int64(len(r.data)) {
		return 1 + bytes.Count(r.data[:syntax.Offset], []byte("\n"))
	}
	return r.here()
}

func (r *jsonReader) value(depth int) (*Node, error) {
	t, line, err := r.token()
	if err != nil {
		return nil, err
	}
	n := &Node{file: r.file, line: line}
	switch t := t.(type) {
	case json.Delim:
		if depth == maxDepth {
			return nil, r.file.problem(line, "nested too deeply")
		}
		if t == '{' {
			return n, r.members(n, depth)
		}
		return n, r.elements(n, depth)
	case nil:
		n.null = true
	case string:
		n.text = t
	case bool:
		n.text = strconv.FormatBool(t)
	case json.Number:
		n.text = t.String()
	}
	return n, nil
}

func (r *jsonReader) members(n *Node, depth int) error {
	n.kind = Map
	for r.dec.More() {
		t, line, err := r.token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok {
			return r.file.problem(line, "not valid JSON: a name is missing")
		}
		v, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.keys = append(n.keys, key{name, line, v})
	}
	_, _, err := r.token() // the closing brace
	return err
}

func (r *jsonReader) elements(n *Node, depth int) error {
	n.kind = List
	for r.dec.More() {
		v, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, v)
	}
	_, _, err := r.token() // the closing bracket
	return err
}

func parseYAML(f *file, data []byte) (*Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, f.problem(0, "file is empty")
	} else if err != nil {
		// The library's text begins with the line: "yaml: line 3: ...".
		line, text := 0, strings.TrimPrefix(err.Error(), "yaml: ")
		if _, scanErr := fmt.Sscanf(text, "line %d:", &line); scanErr == nil {
			_, text, _ = strings.Cut(text, ": ")
		}
		return nil, f.problem(line, "not valid YAML: %s", text)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, f.problem(more.Line, "file has more than one YAML document")
	}
	if len(doc.Content) != 1 {
		return nil, f.problem(0, "file is empty")
	}
	return fromYAML(f, doc.Content[0], 0)
}

func fromYAML(f *file, y *yaml.Node, depth int) (*Node, error) {
	if depth > maxDepth {
		return nil, f.problem(y.Line, "nested too deeply")
	}
	n := &Node{file: f, line: y.Line}
	switch y.Kind {
	case yaml.ScalarNode:
		n.text, n.null = y.Value, y.Tag == "!!null"
		return n, nil
	case yaml.SequenceNode:
		n.kind = List
		for _, item := range y.Content {
			v, err := fromYAML(f, item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, v)
		}
		return n, nil
	case yaml.MappingNode:
		n.kind = Map
		return n, n.fromPairs(y.Content, depth)
	}
	return nil, f.problem(y.Line, "aliases are not supported: write the value out")
}

func (n *Node) fromPairs(pairs []*yaml.Node, depth int) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i].Kind != yaml.ScalarNode {
			return n.file.problem(pairs[i].Line, "the name of a setting must be a word")
		}
		v, err := fromYAML(n.file, pairs[i+1], depth+1)
		if err != nil {
			return err
		}
		n.keys = append(n.keys, key{pairs[i].Value, pairs[i].Line, v})
	}
	return nil
}
