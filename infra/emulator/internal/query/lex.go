package query

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// kind is a kind of token.
type kind int

const (
	end    kind = iota
	word        // a path of one or more names; keywords too
	number      // value is a float64
	text        // value is a string
	symbol      // an operator or bracket
)

// token is a word of a query.
type token struct {
	kind kind
	pos  int    // of its first character, from 1
	text string // as it stands in the query
	path []string
	// quoted means that a name of the path was in brackets, so it is no keyword.
	quoted bool
	value  any
}

// is reports whether the token is a keyword or symbol.
func (t token) is(s string) bool {
	return t.kind == symbol && t.text == s ||
		t.kind == word && len(t.path) == 1 && !t.quoted && strings.EqualFold(t.text, s)
}

// String describes the token in messages.
func (t token) String() string {
	if t.kind == end {
		return "the end"
	}
	const most = 40
	if r := []rune(t.text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return t.text
}

// lexer reads tokens.
type lexer struct {
	src string
	at  int // byte
	pos int // character, from 1
}

func (l *lexer) advance(bytes int) {
	l.pos += utf8.RuneCountInString(l.src[l.at : l.at+bytes])
	l.at += bytes
}

func (l *lexer) peek() (rune, int) { return utf8.DecodeRuneInString(l.src[l.at:]) }

func (l *lexer) fail(reason string) error { return &Error{Position: l.pos, Reason: reason} }

// symbols in the order in which they are tried.
var symbols = []string{"<=", ">=", "<>", "!=", "=", "<", ">", "+", "-", "*", "/", "%", "(", ")", "[", "]", ","}

func (l *lexer) next() (token, error) {
	for {
		r, n := l.peek()
		if n == 0 || !unicode.IsSpace(r) {
			break
		}
		l.advance(n)
	}
	r, n := l.peek()
	t := token{pos: l.pos}
	start := l.at
	var err error
	switch {
	case n == 0:
		return t, nil
	case r == '\'' || r == '"':
		t.kind = text
		t.value, err = l.quoted(byte(r))
	case r >= '0' && r <= '9' || r == '.' && l.digitFollows():
		t.kind = number
		t.value, err = l.number()
	case isNameStart(r) || l.bracketed():
		t.kind = word
		t.path, t.quoted, err = l.path()
	default:
		t.kind = symbol
		err = l.symbol()
	}
	t.text = l.src[start:l.at]
	return t, err
}

func (l *lexer) symbol() error {
	for _, s := range symbols {
		if strings.HasPrefix(l.src[l.at:], s) {
			l.advance(len(s))
			return nil
		}
	}
	r, _ := l.peek()
	return l.fail("unexpected character " + strconv.QuoteRune(r))
}

func isNameStart(r rune) bool { return r == '_' || r == '$' || unicode.IsLetter(r) }

func isName(r rune) bool { return isNameStart(r) || unicode.IsDigit(r) }

// bracketed reports whether a name in double brackets follows, and not an array
// of arrays, whose elements are no names.
func (l *lexer) bracketed() bool {
	rest, ok := strings.CutPrefix(l.src[l.at:], "[[")
	if !ok {
		return false
	}
	r, n := utf8.DecodeRuneInString(rest)
	return n > 0 && isName(r) && strings.Contains(rest, "]]")
}

func (l *lexer) digitFollows() bool {
	return l.at+1 < len(l.src) && l.src[l.at+1] >= '0' && l.src[l.at+1] <= '9'
}

// path reads names that are joined by dots. A name in double brackets may have
// any characters.
func (l *lexer) path() (names []string, quoted bool, err error) {
	for {
		name := ""
		if rest, ok := strings.CutPrefix(l.src[l.at:], "[["); ok {
			n := strings.Index(rest, "]]")
			if n <= 0 {
				return nil, false, l.fail("a name in [[ and ]] is expected")
			}
			name, quoted = rest[:n], true
			l.advance(n + 4)
		} else {
			if name = l.name(); name == "" {
				return nil, false, l.fail("a name is expected after the dot")
			}
		}
		names = append(names, name)
		if r, n := l.peek(); n == 0 || r != '.' {
			return names, quoted, nil
		}
		l.advance(1)
	}
}

func (l *lexer) name() string {
	start := l.at
	for {
		r, n := l.peek()
		if n == 0 || !isName(r) {
			return l.src[start:l.at]
		}
		l.advance(n)
	}
}

// number reads a decimal number, or a hexadecimal one that begins with 0x.
func (l *lexer) number() (float64, error) {
	n := 0
	rest := l.src[l.at:]
	for n < len(rest) {
		c := rest[n]
		sign := (c == '+' || c == '-') && n > 0 && (rest[n-1] == 'e' || rest[n-1] == 'E') && !isHex(rest)
		if !sign && c != '.' && (c >= utf8.RuneSelf || !isName(rune(c))) {
			break
		}
		n++
	}
	digits := rest[:n]
	if isHex(digits) {
		if i, err := strconv.ParseUint(digits[2:], 16, 64); err == nil {
			l.advance(n)
			return float64(i), nil
		}
	} else if f, err := strconv.ParseFloat(digits, 64); err == nil && !strings.ContainsAny(digits, "_xXpPnN") {
		l.advance(n)
		return f, nil
	}
	return 0, l.fail("a number is expected, such as 12, 1.5 or 0x1F")
}

func isHex(digits string) bool {
	return strings.HasPrefix(digits, "0x") || strings.HasPrefix(digits, "0X")
}

// quoted reads a string in single or double quotes.
func (l *lexer) quoted(quote byte) (string, error) {
	var b strings.Builder
	l.advance(1)
	for {
		r, n := l.peek()
		switch {
		case n == 0:
			return "", l.fail("the string has no closing " + string(rune(quote)))
		case r == rune(quote):
			l.advance(1)
			return b.String(), nil
		case r == '\\':
			r, n = l.escape()
			if n == 0 {
				return "", l.fail(`unknown escape: there are \', \", \\ and \uXXXX`)
			}
		}
		b.WriteRune(r)
		l.advance(n)
	}
}

// escape returns the character that a backslash and what follows stand for, and
// the length of both; 0 for none.
func (l *lexer) escape() (rune, int) {
	rest := l.src[l.at+1:]
	if rest == "" {
		return 0, 0
	}
	switch rest[0] {
	case '\'', '"', '\\':
		return rune(rest[0]), 2
	case 'u':
		if len(rest) >= 5 {
			if code, err := strconv.ParseUint(rest[1:5], 16, 32); err == nil {
				return rune(code), 6
			}
		}
	}
	return 0, 0
}
