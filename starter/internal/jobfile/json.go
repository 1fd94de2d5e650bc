package jobfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"gopkg.in/yaml.v3"
)

// parseJSON reads JSON into the form that YAML is read into, so that one walk over it serves both. YAML libraries read
// most of JSON, but not all: surrogate pairs, for one.
func parseJSON(text []byte) (*yaml.Node, error) {
	p := &jsonParser{text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	p.dec.UseNumber()
	root, err := p.value()
	if err == nil {
		if _, end := p.dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("there is more after the end of the JSON object")
		}
	}
	if err != nil {
		return nil, p.explain(err)
	}
	return root, nil
}

type jsonParser struct {
	text []byte
	dec  *json.Decoder
}

func (p *jsonParser) explain(err error) error {
	at := p.dec.InputOffset()
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		at, err = int64(len(p.text)), errors.New("the JSON ends too early")
	}
	return &Error{Line: p.line(at), Err: err}
}

// line returns the line of the byte before offset.
func (p *jsonParser) line(offset int64) int {
	end := min(max(offset, 0), int64(len(p.text)))
	return 1 + bytes.Count(p.text[:end], []byte("\n"))
}

func (p *jsonParser) value() (*yaml.Node, error) {
	token, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Line: p.line(p.dec.InputOffset())}
	switch v := token.(type) {
	case json.Delim:
		if v == '{' {
			n.Kind = yaml.MappingNode
		} else {
			n.Kind = yaml.SequenceNode
		}
		return n, p.members(n)
	case string:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!str", v
	case json.Number:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!float", v.String()
		if _, err := v.Int64(); err == nil {
			n.Tag = "!!int"
		}
	case bool:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!bool", fmt.Sprint(v)
	case nil:
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!null", "null"
	}
	return n, nil
}

// members reads what is in an object or an array, and its closing delimiter. The names in an object come as values of
// their own, as they do in a yaml.Node.
func (p *jsonParser) members(n *yaml.Node) error {
	for p.dec.More() {
		v, err := p.value()
		if err != nil {
			return err
		}
		n.Content = append(n.Content, v)
	}
	_, err := p.dec.Token()
	return err
}
