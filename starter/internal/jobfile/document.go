package jobfile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// member is a name that an object may have, and what takes its value.
type member struct {
	name string
	take func(*yaml.Node) error
}

func (f *File) document(root *yaml.Node) error {
	return f.object(root, "the file", []member{
		{"name", f.takeName},
		{"steps", f.takeSteps},
		{"options", f.takeOptions},
	})
}

// object hands the members of n to those who take them.
func (f *File) object(n *yaml.Node, what string, members []member) error {
	if n.Kind != yaml.MappingNode {
		return f.at(n.Line, fmt.Errorf("%s must be an object with the members %s", what, names(members)))
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		at := slices.IndexFunc(members, func(m member) bool { return m.name == name.Value })
		switch {
		case at < 0:
			return f.at(name.Line, fmt.Errorf("unknown member %q: %s has %s", shorten(name.Value), what, names(members)))
		case seen[name.Value]:
			return f.at(name.Line, fmt.Errorf("%s stands here for the second time", name.Value))
		}
		seen[name.Value] = true
		if err := members[at].take(value); err != nil {
			return f.wrap(value.Line, name.Value, err)
		}
	}
	return nil
}

// wrap gives an error the place and the name of the member it is about, unless it has a place already.
func (f *File) wrap(line int, name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return f.at(line, fmt.Errorf("%s: %w", name, err))
}

func names(members []member) string {
	var all []string
	for _, m := range members {
		all = append(all, m.name)
	}
	return strings.Join(all, ", ")
}

func (f *File) takeName(n *yaml.Node) (err error) {
	f.nameLine = n.Line
	if f.Name, err = text(n); err == nil && f.Name == "" {
		err = errors.New("is empty: leave it out or give the job a name")
	}
	return err
}

func (f *File) takeSteps(n *yaml.Node) error {
	f.listLine = n.Line
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return nil
	case n.Kind != yaml.SequenceNode:
		return errors.New("must be a list of names")
	}
	for i, item := range n.Content {
		step, err := text(item)
		if err != nil {
			return f.at(item.Line, fmt.Errorf("step %d: %w", i+1, err))
		}
		f.Steps, f.lines = append(f.Steps, step), append(f.lines, item.Line)
	}
	return nil
}

func (f *File) takeOptions(n *yaml.Node) error {
	o := &f.Options
	members := []member{
		{"stepTime", func(n *yaml.Node) error {
			d, err := duration(n)
			o.Solver.StepTime = &d
			return err
		}},
		{"stepTimeout", into(&o.Solver.StepTimeout, duration)},
		{"stepRetries", into(&o.Solver.StepRetries, number)},
		{"timeout", into(&o.Timeout, duration)},
		{"acceptTimeout", into(&o.AcceptTimeout, duration)},
		{"receiptTimeout", into(&o.ReceiptTimeout, duration)},
		{"receiptAttempts", into(&o.ReceiptAttempts, number)},
		{"cancelTimeout", into(&o.CancelTimeout, duration)},
		{"messageTtl", into(&o.MessageTTL, duration)},
		{"window", into(&o.Window, number)},
	}
	for i, m := range members {
		members[i].take = func(n *yaml.Node) error {
			if err := m.take(n); err != nil {
				return err
			}
			return o.Validate() // after each, so that the error is about this one
		}
	}
	return f.object(n, "options", members)
}

// into stores what read makes of a value.
func into[T any](target *T, read func(*yaml.Node) (T, error)) func(*yaml.Node) error {
	return func(n *yaml.Node) (err error) {
		*target, err = read(n)
		return err
	}
}

func text(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return "", errors.New("is not text: put it in quotes")
	}
	return n.Value, nil
}

func duration(n *yaml.Node) (time.Duration, error) {
	d, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return 0, fmt.Errorf("%q is no duration: write one like 500ms, 90s, 10m or 2h", shorten(n.Value))
	}
	if d < 0 {
		return 0, fmt.Errorf("%s is negative", d)
	}
	return d, nil
}

func number(n *yaml.Node) (int, error) {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
		return 0, fmt.Errorf("%q is no whole number", shorten(n.Value))
	}
	return v, nil
}

// shorten keeps errors to one line of a bearable length.
func shorten(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
