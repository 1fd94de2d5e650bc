package configtree

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// File returns the name of the file.
func (n *Node) File() string { return n.file.name }

// Line returns the line of the node.
func (n *Node) Line() int { return n.line }

// Refuse notes a problem with the node. Reading goes on, so that a person sees
// all problems at once.
func (n *Node) Refuse(format string, args ...any) {
	n.file.problems = append(n.file.problems, n.file.problem(n.line, format, args...))
}

// Err returns all problems of the file that were noted so far, in order of
// their lines.
func (n *Node) Err() error {
	slices.SortStableFunc(n.file.problems, func(a, b error) int { return lineOf(a) - lineOf(b) })
	return errors.Join(n.file.problems...)
}

func lineOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Line
	}
	return 0
}

// Section is a map of which settings are read by name, without regard to case as
// in the vendor's emulators. Each method returns a zero value when the setting
// is missing or null, and notes a problem when it isn't of the wanted kind.
type Section struct {
	*Node
	read map[string]bool
}

// Section reads the node as a section, what being its name in messages. A node
// of another kind is noted as a problem and read as an empty section.
func (n *Node) Section(what string) *Section {
	s := &Section{Node: n, read: make(map[string]bool)}
	if n.kind != Map && !n.null {
		n.Refuse("%s must be %s and not %s", what, kindNames[Map], kindNames[n.kind])
		s.Node = &Node{kind: Map, line: n.line, file: n.file}
	}
	seen := make(map[string]bool)
	for _, k := range s.keys {
		if lower := strings.ToLower(k.name); seen[lower] {
			(&Node{file: n.file, line: k.line}).Refuse("%s is set twice", k.name)
		} else {
			seen[lower] = true
		}
	}
	return s
}

// Get returns a setting, or nil if it is missing or null.
func (s *Section) Get(name string) *Node {
	s.read[strings.ToLower(name)] = true
	for _, k := range s.keys {
		if strings.EqualFold(k.name, name) && !k.value.null {
			return k.value
		}
	}
	return nil
}

// Done notes every setting that nobody has asked for.
func (s *Section) Done() {
	for _, k := range s.keys {
		if !s.read[strings.ToLower(k.name)] {
			(&Node{file: s.file, line: k.line}).Refuse("%s is not a setting here that the emulator knows", k.name)
		}
	}
}

// Sub reads a setting as a section; an empty one if it is missing.
func (s *Section) Sub(name string) *Section {
	if n := s.Get(name); n != nil {
		return n.Section(name)
	}
	return (&Node{kind: Map, line: s.line, file: s.file}).Section(name)
}

// List returns the items of a list.
func (s *Section) List(name string) []*Node {
	n := s.Get(name)
	if n == nil {
		return nil
	}
	if n.kind != List {
		n.Refuse("%s must be %s and not %s", name, kindNames[List], kindNames[n.kind])
		return nil
	}
	return n.items
}

// Text reads the node as a single value, what being its name in messages.
func (n *Node) Text(what string) string {
	if n.kind != Scalar {
		n.Refuse("%s must be %s and not %s", what, kindNames[Scalar], kindNames[n.kind])
		return ""
	}
	return n.text
}

// Text returns a setting that is a single value.
func (s *Section) Text(name string) string {
	if n := s.Get(name); n != nil {
		return n.Text(name)
	}
	return ""
}

// Bool returns a setting that is true or false.
func (s *Section) Bool(name string, missing bool) bool {
	n := s.Get(name)
	if n == nil {
		return missing
	}
	switch text := n.Text(name); {
	case strings.EqualFold(text, "true"):
		return true
	case strings.EqualFold(text, "false"):
	default:
		n.Refuse("%s is %q and must be true or false", name, text)
	}
	return false
}

// Int returns a setting that is a number within bounds, or 0 if it is missing.
func (s *Section) Int(name string, least, most int) int {
	n := s.Get(name)
	if n == nil {
		return 0
	}
	v, err := strconv.Atoi(n.Text(name))
	if err != nil || v < least || v > most {
		n.Refuse("%s is %q and must be a whole number from %d to %d", name, n.text, least, most)
		return 0
	}
	return v
}

// Duration returns a setting in the form of ISO 8601, such as PT1M30S or P1D,
// within bounds, or 0 if it is missing. Durations that a time.Duration can't
// hold, such as the vendor's "for ever" of 29,000 years, are its longest.
func (s *Section) Duration(name string, least, most time.Duration) time.Duration {
	n := s.Get(name)
	if n == nil {
		return 0
	}
	d, ok := parseDuration(n.Text(name))
	switch {
	case !ok:
		n.Refuse("%s is %q and must be a duration like PT30S, PT5M, PT1H or P1D", name, n.text)
	case d < least || d > most:
		n.Refuse("%s is %s and must be %s", name, n.text, bounds(least, most))
	default:
		return d
	}
	return 0
}

var dateUnits = []unit{{'W', 7 * 24 * time.Hour}, {'D', 24 * time.Hour}}

var timeUnits = []unit{{'H', time.Hour}, {'M', time.Minute}, {'S', time.Second}}

type unit struct {
	letter byte
	length time.Duration
}

// parseDuration reads an ISO 8601 duration without years and months, which have
// no fixed length.
func parseDuration(s string) (time.Duration, bool) {
	rest, ok := strings.CutPrefix(s, "P")
	if !ok {
		return 0, false
	}
	date, clock, hasClock := strings.Cut(rest, "T")
	if rest == "" || hasClock && clock == "" {
		return 0, false
	}
	days, ok := sumUnits(date, dateUnits)
	if !ok {
		return 0, false
	}
	hours, ok := sumUnits(clock, timeUnits)
	if total := days + hours; total < math.MaxInt64 {
		return time.Duration(total), ok
	}
	return math.MaxInt64, ok
}

// bounds says what a duration must be.
func bounds(least, most time.Duration) string {
	if most == math.MaxInt64 {
		return iso8601(least) + " or more"
	}
	return "from " + iso8601(least) + " to " + iso8601(most)
}

// iso8601 is the reverse of parseDuration, for whole seconds.
func iso8601(d time.Duration) string {
	days, d := d/(24*time.Hour), d%(24*time.Hour)
	text := "P"
	if days > 0 {
		text += strconv.FormatInt(int64(days), 10) + "D"
	}
	if d > 0 || days == 0 {
		text += "T"
	}
	for _, u := range timeUnits {
		if n := d / u.length; n > 0 || text == "PT" && u.length == time.Second {
			text += strconv.FormatInt(int64(n), 10) + string(u.letter)
			d -= n * u.length
		}
	}
	return text
}

// sumUnits adds up numbers that are followed by units in the given order.
func sumUnits(s string, units []unit) (nanoseconds float64, ok bool) {
	for _, u := range units {
		i := strings.IndexByte(s, u.letter)
		if i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(s[:i], 64)
		if err != nil || v < 0 || strings.Trim(s[:i], "0123456789.") != "" {
			return 0, false
		}
		nanoseconds += v * float64(u.length)
		s = s[i+1:]
	}
	return nanoseconds, s == ""
}
