package query

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds. The first is the cloud's (IoT Hub docs: "Queries for IoT Hub device and
// module twins", Twin query limitations), the others our own.
const (
	maxLength = 8192 // characters
	maxDepth  = 100  // brackets in brackets
	maxItems  = 100  // of SELECT, and of GROUP BY
)

// fields are the fields of a twin whose names a query may write in any case; those
// of an object stand behind it. Names within tags and properties are matched
// exactly.
var fields = [][]string{
	{"deviceId"}, {"moduleId"}, {"etag"}, {"deviceEtag"}, {"status"}, {"statusReason"},
	{"statusUpdateTime"}, {"connectionState"}, {"lastActivityTime"}, {"cloudToDeviceMessageCount"},
	{"authenticationType"}, {"version"}, {"tags"}, {"modelId"}, {"deviceScope"}, {"parentScopes"},
	{"properties", "desired"}, {"properties", "reported"}, {"capabilities", "iotEdge"},
	{"x509Thumbprint", "primaryThumbprint"}, {"x509Thumbprint", "secondaryThumbprint"},
}

// aggregates are the functions of the SELECT clause.
var aggregates = []string{"COUNT", "SUM", "AVG", "MIN", "MAX"}

// parser is a recursive descent parser with one token of look-ahead.
type parser struct {
	lex   lexer
	tok   token
	depth int
	// references are those of the WHERE clause.
	references []*reference
}

// Parse returns the query of a text. An error is an *Error.
func Parse(src string) (*Query, error) {
	if utf8.RuneCountInString(src) > maxLength {
		return nil, &Error{Position: maxLength + 1, Reason: fmt.Sprintf("a query has at most %d characters", maxLength)}
	}
	p := &parser{lex: lexer{src: src, pos: 1}}
	if err := p.advance(); err != nil {
		return nil, err
	}
	q, err := p.query()
	if err != nil {
		return nil, err
	}
	q.resolve(p.references)
	if err := q.check(); err != nil {
		return nil, err
	}
	return q, nil
}

func (p *parser) advance() (err error) {
	p.tok, err = p.lex.next()
	return err
}

func (p *parser) expected(what string) error {
	return &Error{Position: p.tok.pos, Reason: fmt.Sprintf("%s is expected and not %s", what, p.tok)}
}

// accept skips a keyword or symbol if it is next.
func (p *parser) accept(s string) (bool, error) {
	if !p.tok.is(s) {
		return false, nil
	}
	return true, p.advance()
}

func (p *parser) expect(s string) error {
	ok, err := p.accept(s)
	if !ok {
		return p.expected(s)
	}
	return err
}

func (p *parser) query() (*Query, error) {
	q := &Query{}
	for _, clause := range []func(*Query) error{p.selectClause, p.fromClause, p.whereClause, p.groupByClause} {
		if err := clause(q); err != nil {
			return nil, err
		}
	}
	switch {
	case p.tok.is("ORDER"):
		return nil, &Error{Position: p.tok.pos, Reason: "there is no ORDER BY"}
	case p.tok.kind != end:
		return nil, p.expected("an operator, WHERE, GROUP BY or the end")
	}
	return q, nil
}

func (p *parser) selectClause(q *Query) error {
	if err := p.expect("SELECT"); err != nil {
		return err
	}
	if err := p.top(q); err != nil {
		return err
	}
	if ok, err := p.accept("*"); ok || err != nil {
		return err
	}
	for {
		i, err := p.item(len(q.items) + 1)
		if err != nil {
			return err
		}
		if q.items = append(q.items, i); len(q.items) > maxItems {
			return &Error{Position: i.pos, Reason: fmt.Sprintf("more than %d items after SELECT", maxItems)}
		}
		if ok, err := p.accept(","); !ok || err != nil {
			return err
		}
	}
}

func (p *parser) top(q *Query) error {
	if ok, err := p.accept("TOP"); !ok || err != nil {
		return err
	}
	n, _ := p.tok.value.(float64)
	if p.tok.kind != number || n < 1 || n > math.MaxInt32 || n != math.Trunc(n) {
		return p.expected("a positive whole number")
	}
	q.Top = int(n)
	return p.advance()
}

// item reads a path or an aggregate, and its name. Without one, a path has the
// name of its last part, and an aggregate $ and its number.
func (p *parser) item(number int) (item, error) {
	i := item{pos: p.tok.pos}
	first := p.tok
	if first.kind != word || first.is("FROM") {
		return i, p.expected("*, a property or an aggregate such as COUNT()")
	}
	if err := p.advance(); err != nil {
		return i, err
	}
	if p.tok.is("(") {
		i.aggregate = strings.ToUpper(first.text)
		i.name = "$" + strconv.Itoa(number)
		if !slices.Contains(aggregates, i.aggregate) {
			return i, &Error{Position: first.pos, Reason: fmt.Sprintf("%s is no aggregate: there are %s", first, strings.Join(aggregates, ", "))}
		}
		if err := p.argument(&i); err != nil {
			return i, err
		}
	} else {
		i.path = first.path
	}
	return i, p.alias(&i)
}

// argument reads what an aggregate is made of: a path, and nothing for COUNT.
func (p *parser) argument(i *item) error {
	if err := p.expect("("); err != nil {
		return err
	}
	if i.aggregate != "COUNT" {
		if p.tok.kind != word {
			return p.expected("a property")
		}
		i.path = p.tok.path
		if err := p.advance(); err != nil {
			return err
		}
	}
	return p.expect(")")
}

func (p *parser) alias(i *item) error {
	if ok, err := p.accept("AS"); !ok || err != nil {
		return err
	}
	if p.tok.kind != word || len(p.tok.path) != 1 {
		return p.expected("a name")
	}
	i.name = p.tok.path[0]
	return p.advance()
}

func (p *parser) fromClause(q *Query) error {
	if err := p.expect("FROM"); err != nil {
		return err
	}
	for _, c := range []Collection{Devices, Modules, Jobs} {
		if p.tok.kind == word && !p.tok.quoted && strings.EqualFold(p.tok.text, string(c)) {
			q.Collection = c
			return p.advance()
		}
	}
	return p.expected("devices, devices.modules or devices.jobs")
}

func (p *parser) whereClause(q *Query) error {
	ok, err := p.accept("WHERE")
	if ok && err == nil {
		q.where, err = p.or()
	}
	return err
}

// groupByClause reads one path or several. The cloud documents one only.
func (p *parser) groupByClause(q *Query) error {
	if ok, err := p.accept("GROUP"); !ok || err != nil {
		return err
	}
	if err := p.expect("BY"); err != nil {
		return err
	}
	for {
		if p.tok.kind != word {
			return p.expected("a property")
		}
		if q.groupBy = append(q.groupBy, p.tok.path); len(q.groupBy) > maxItems {
			return &Error{Position: p.tok.pos, Reason: fmt.Sprintf("more than %d properties after GROUP BY", maxItems)}
		}
		if err := p.advance(); err != nil {
			return err
		}
		if ok, err := p.accept(","); !ok || err != nil {
			return err
		}
	}
}

// resolve takes the name of the collection off paths and brings the names of
// fields into their own form.
func (q *Query) resolve(references []*reference) {
	for i := range q.items {
		if path := q.items[i].path; path != nil {
			path = resolve(q.Collection, path)
			q.items[i].path = path
			if q.items[i].name == "" {
				q.items[i].name = path[len(path)-1]
			}
		}
	}
	for i, path := range q.groupBy {
		q.groupBy[i] = resolve(q.Collection, path)
	}
	for _, r := range references {
		r.path = resolve(q.Collection, r.path)
	}
}

// resolve also takes devices alone off paths of modules (Azure PowerShell docs:
// "Invoke-AzIotHubQuery").
func resolve(c Collection, path []string) []string {
	for _, prefix := range [][]string{strings.Split(string(c), "."), {string(Devices)}} {
		if len(path) > len(prefix) && slices.EqualFunc(path[:len(prefix)], prefix, strings.EqualFold) {
			path = path[len(prefix):]
			break
		}
	}
	path = slices.Clone(path)
	for _, field := range fields {
		for i, name := range field {
			if i == len(path) || !strings.EqualFold(path[i], name) {
				break
			}
			path[i] = name
		}
	}
	return path
}

// check refuses what the clauses don't allow together.
func (q *Query) check() error {
	for _, i := range q.items {
		grouped := slices.ContainsFunc(q.groupBy, func(p []string) bool { return slices.Equal(p, i.path) })
		if i.aggregate == "" && !grouped && q.Aggregated() {
			return &Error{Position: i.pos, Reason: strings.Join(i.path, ".") + " is neither an aggregate nor in GROUP BY"}
		}
	}
	switch {
	case q.groupBy != nil && q.Whole():
		return &Error{Position: 1, Reason: "GROUP BY doesn't go with SELECT *"}
	case q.Collection == Jobs && !q.Whole():
		return &Error{Position: 1, Reason: "devices.jobs allows SELECT * only"}
	}
	return nil
}
