package query

import (
	"fmt"
	"strings"
)

// The grammar, from the operator that binds least:
//
//	or         = and { "OR" and }
//	and        = not { "AND" not }
//	not        = { "NOT" } comparison
//	comparison = sum [ ( "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=" | "IN" | "NIN" ) sum ]
//	sum        = product { ( "+" | "-" ) product }
//	product    = unary { ( "*" | "/" | "%" ) unary }
//	unary      = { "-" } primary
//	primary    = constant | array | path | function | "(" or ")"

// nest counts a bracket or operator that contains others, so that no text can
// make the parser, or the evaluation, go deeper than it may.
func (p *parser) nest() error {
	if p.depth++; p.depth > maxDepth {
		return &Error{Position: p.tok.pos, Reason: fmt.Sprintf("more than %d levels of brackets and operators", maxDepth)}
	}
	return nil
}

func (p *parser) or() (expression, error) {
	if err := p.nest(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	operands, err := p.chain("OR", p.and)
	if len(operands) == 1 {
		return operands[0], err
	}
	return some(operands), err
}

func (p *parser) and() (expression, error) {
	operands, err := p.chain("AND", p.not)
	if len(operands) == 1 {
		return operands[0], err
	}
	return all(operands), err
}

// chain reads operands with an operator between them.
func (p *parser) chain(operator string, operand func() (expression, error)) ([]expression, error) {
	var operands []expression
	for {
		e, err := operand()
		if err != nil {
			return nil, err
		}
		operands = append(operands, e)
		if ok, err := p.accept(operator); !ok || err != nil {
			return operands, err
		}
	}
}

func (p *parser) not() (expression, error) {
	negated, found := false, false
	for p.tok.is("NOT") {
		negated, found = !negated, true
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	e, err := p.comparison()
	if !found || err != nil {
		return e, err
	}
	return not{e, negated}, nil
}

// comparisons are the operators that don't chain.
var comparisons = []string{"=", "!=", "<>", "<", "<=", ">", ">=", "IN", "NIN"}

func (p *parser) comparison() (expression, error) {
	left, err := p.sum()
	if err != nil {
		return nil, err
	}
	for _, operator := range comparisons {
		if !p.tok.is(operator) {
			continue
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		right, err := p.sum()
		switch operator {
		case "IN", "NIN":
			return member{left, right, operator == "IN"}, err
		case "<>":
			operator = "!="
		}
		return comparison{operator, left, right}, err
	}
	return left, nil
}

func (p *parser) sum() (expression, error) { return p.arithmetic(p.product, "+", "-") }

func (p *parser) product() (expression, error) { return p.arithmetic(p.unary, "*", "/", "%") }

// arithmetic reads operators that bind to the left.
func (p *parser) arithmetic(operand func() (expression, error), operators ...string) (expression, error) {
	left, err := operand()
	if err != nil {
		return nil, err
	}
	for {
		operator := ""
		for _, o := range operators {
			if p.tok.is(o) {
				operator = o
			}
		}
		if operator == "" {
			return left, nil
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		right, err := operand()
		if err != nil {
			return nil, err
		}
		left = arithmetic{operator[0], left, right}
	}
}

func (p *parser) unary() (expression, error) {
	negative := false
	for p.tok.is("-") {
		negative = !negative
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	e, err := p.primary()
	if negative && err == nil {
		e = arithmetic{'-', constant(numberValue(0)), e}
	}
	return e, err
}

func (p *parser) primary() (expression, error) {
	t := p.tok
	switch {
	case t.kind == number:
		return constant(numberValue(t.value.(float64))), p.advance()
	case t.kind == text:
		return constant(value{kind: stringKind, text: t.value.(string)}), p.advance()
	case t.is("("):
		return p.brackets()
	case t.is("["):
		return p.array()
	case t.kind == word && !keyword(t):
		return p.name()
	}
	return nil, p.expected("a property or value")
}

func (p *parser) brackets() (expression, error) {
	if err := p.advance(); err != nil {
		return nil, err
	}
	e, err := p.or()
	if err != nil {
		return nil, err
	}
	return e, p.expect(")")
}

func (p *parser) array() (expression, error) {
	if err := p.nest(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	if err := p.advance(); err != nil {
		return nil, err
	}
	if ok, err := p.accept("]"); ok || err != nil {
		return list(nil), err
	}
	elements, err := p.chain(",", p.unary)
	if err != nil {
		return nil, err
	}
	return newList(elements), p.expect("]")
}

// newList returns an array, already evaluated if it has constants only: it may be
// long, and is looked at for each document.
func newList(elements []expression) expression {
	for _, e := range elements {
		if _, ok := e.(constant); !ok {
			return list(elements)
		}
	}
	return constant(list(elements).eval(nil))
}

// keyword reports whether the token can't be a property.
func keyword(t token) bool {
	for _, k := range []string{"SELECT", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN"} {
		if t.is(k) {
			return true
		}
	}
	return false
}

// name reads what begins with a name: a constant, a function or a path.
func (p *parser) name() (expression, error) {
	t := p.tok
	if err := p.advance(); err != nil {
		return nil, err
	}
	switch {
	case p.tok.is("("):
		return p.function(t)
	case t.is("true"), t.is("false"):
		return constant(value{kind: boolKind, truth: t.is("true")}), nil
	case t.is("null"):
		return constant(value{kind: nullKind}), nil
	case t.is("undefined"):
		return constant(value{}), nil
	}
	return p.reference(t.path), nil
}

func (p *parser) reference(path []string) *reference {
	r := &reference{path}
	p.references = append(p.references, r)
	return r
}

// function reads the arguments of a function of the WHERE clause. IS_DEFINED is
// the one that is documented; azure-iot-explorer uses STARTSWITH too
// (dataplaneServiceHelper of its device list).
func (p *parser) function(name token) (expression, error) {
	switch {
	case name.is("IS_DEFINED"):
		if err := p.advance(); err != nil {
			return nil, err
		}
		t := p.tok
		if t.kind != word || keyword(t) {
			return nil, p.expected("a property")
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		return isDefined{p.reference(t.path)}, p.expect(")")
	case name.is("STARTSWITH"), name.is("STARTS_WITH"):
		return p.startsWith()
	}
	return nil, &Error{Position: name.pos, Reason: fmt.Sprintf("%s is no function of twin queries: there are IS_DEFINED and STARTSWITH", strings.ToUpper(name.String()))}
}

func (p *parser) startsWith() (expression, error) {
	if err := p.nest(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	if err := p.advance(); err != nil {
		return nil, err
	}
	whole, err := p.sum()
	if err != nil {
		return nil, err
	}
	if err := p.expect(","); err != nil {
		return nil, err
	}
	start, err := p.sum()
	if err != nil {
		return nil, err
	}
	return startsWith{whole, start}, p.expect(")")
}
