package query

import (
	"cmp"
	"encoding/json"
	"math"
	"strings"
)

// valueKind is the type of a value.
type valueKind int

const (
	undefinedKind valueKind = iota
	nullKind
	boolKind
	numberKind
	stringKind
	listKind   // an array
	objectKind // what can't be compared
)

// value is the result of an expression; the zero value is undefined.
type value struct {
	kind     valueKind
	truth    bool
	number   float64
	text     string
	elements []any
}

func numberValue(f float64) value { return value{kind: numberKind, number: f} }

func boolValue(b bool) value { return value{kind: boolKind, truth: b} }

func (v value) isTrue() bool { return v.kind == boolKind && v.truth }

// valueOf returns the value of what a document holds.
func valueOf(v any) value {
	switch v := v.(type) {
	case value:
		return v
	case nil:
		return value{kind: nullKind}
	case bool:
		return boolValue(v)
	case string:
		return value{kind: stringKind, text: v}
	case float64:
		return numberValue(v)
	case int:
		return numberValue(float64(v))
	case int64:
		return numberValue(float64(v))
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return value{kind: objectKind}
		}
		return numberValue(f)
	case []any:
		return value{kind: listKind, elements: v}
	}
	return value{kind: objectKind}
}

// equal compares two values. Values of different types differ; whether arrays or
// objects are equal is undefined ("comparisons are supported only between
// primitive types").
func equal(a, b value) value {
	switch {
	case a.kind == undefinedKind || b.kind == undefinedKind || a.kind >= listKind || b.kind >= listKind:
		return value{}
	case a.kind != b.kind:
		return boolValue(false)
	}
	order, _ := a.compare(b)
	return boolValue(order == 0)
}

// compare orders two values of one type that has an order.
func (v value) compare(other value) (order int, ok bool) {
	if v.kind != other.kind {
		return 0, false
	}
	switch v.kind {
	case numberKind:
		return cmp.Compare(v.number, other.number), true
	case stringKind:
		return strings.Compare(v.text, other.text), true
	case boolKind:
		rank := map[bool]int{true: 1}
		return cmp.Compare(rank[v.truth], rank[other.truth]), true
	}
	return 0, false
}

// expression is a part of a WHERE clause.
type expression interface {
	eval(Document) value
}

type (
	constant   value
	list       []expression
	reference  struct{ path []string }
	isDefined  struct{ of *reference }
	startsWith struct{ whole, start expression }
	comparison struct {
		operator    string
		left, right expression
	}
	member struct {
		element, of expression
		in          bool
	}
	arithmetic struct {
		operator    byte
		left, right expression
	}
	not struct {
		of      expression
		negated bool
	}
	all  []expression // AND
	some []expression // OR
)

func (e constant) eval(Document) value { return value(e) }

func (e list) eval(d Document) value {
	v := value{kind: listKind, elements: make([]any, len(e))}
	for i, element := range e {
		v.elements[i] = element.eval(d)
	}
	return v
}

func (e *reference) eval(d Document) value {
	v, ok := d.Lookup(e.path)
	if !ok {
		return value{}
	}
	return valueOf(v)
}

func (e isDefined) eval(d Document) value {
	_, ok := d.Lookup(e.of.path)
	return boolValue(ok)
}

func (e startsWith) eval(d Document) value {
	whole, start := e.whole.eval(d), e.start.eval(d)
	if whole.kind != stringKind || start.kind != stringKind {
		return value{}
	}
	return boolValue(strings.HasPrefix(whole.text, start.text))
}

func (e comparison) eval(d Document) value {
	left, right := e.left.eval(d), e.right.eval(d)
	switch e.operator {
	case "=":
		return equal(left, right)
	case "!=":
		v := equal(left, right)
		v.truth = !v.truth
		return v
	}
	order, ok := left.compare(right)
	if !ok {
		return value{}
	}
	switch e.operator {
	case "<":
		return boolValue(order < 0)
	case "<=":
		return boolValue(order <= 0)
	case ">":
		return boolValue(order > 0)
	}
	return boolValue(order >= 0)
}

func (e member) eval(d Document) value {
	element, of := e.element.eval(d), e.of.eval(d)
	if element.kind == undefinedKind || element.kind >= listKind || of.kind != listKind {
		return value{}
	}
	for _, candidate := range of.elements {
		if equal(element, valueOf(candidate)).isTrue() {
			return boolValue(e.in)
		}
	}
	return boolValue(!e.in)
}

func (e arithmetic) eval(d Document) value {
	left, right := e.left.eval(d), e.right.eval(d)
	if left.kind != numberKind || right.kind != numberKind {
		return value{}
	}
	result := 0.0
	switch e.operator {
	case '+':
		result = left.number + right.number
	case '-':
		result = left.number - right.number
	case '*':
		result = left.number * right.number
	case '/':
		result = left.number / right.number
	case '%':
		result = math.Mod(left.number, right.number)
	}
	if math.IsNaN(result) || math.IsInf(result, 0) {
		return value{}
	}
	return numberValue(result)
}

// eval: anything that isn't true counts as false, but whether something undefined
// is false stays undefined.
func (e not) eval(d Document) value {
	v := e.of.eval(d)
	if v.kind == undefinedKind {
		return v
	}
	return boolValue(v.isTrue() != e.negated)
}

func (e all) eval(d Document) value { return combine(e, d, false) }

func (e some) eval(d Document) value { return combine(e, d, true) }

// combine returns decisive as soon as an operand has that truth; else undefined
// if one was undefined.
func combine(operands []expression, d Document, decisive bool) value {
	result := boolValue(!decisive)
	for _, operand := range operands {
		v := operand.eval(d)
		switch {
		case v.kind == undefinedKind:
			result = v
		case v.isTrue() == decisive:
			return boolValue(decisive)
		}
	}
	return result
}
