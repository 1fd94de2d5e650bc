package amqp

import "fmt"

// Error is an error as links, sessions and connections report it (§2.8.14). It
// is a Go error too, so that handlers can return it.
type Error struct {
	Condition   Symbol
	Description string
	Info        map[string]any // keys are symbols on the wire
}

// Error gives the condition with its description.
func (e *Error) Error() string {
	if e.Description == "" {
		return string(e.Condition)
	}
	return string(e.Condition) + ": " + e.Description
}

// Errorf makes an Error with a formatted description.
func Errorf(condition Symbol, format string, args ...any) *Error {
	return &Error{Condition: condition, Description: fmt.Sprintf(format, args...)}
}

// Error conditions of the specification (§2.8.15 to §2.8.18).
const (
	CondInternalError         Symbol = "amqp:internal-error"
	CondNotFound              Symbol = "amqp:not-found"
	CondUnauthorizedAccess    Symbol = "amqp:unauthorized-access"
	CondDecodeError           Symbol = "amqp:decode-error"
	CondResourceLimitExceeded Symbol = "amqp:resource-limit-exceeded"
	CondNotAllowed            Symbol = "amqp:not-allowed"
	CondInvalidField          Symbol = "amqp:invalid-field"
	CondNotImplemented        Symbol = "amqp:not-implemented"
	CondResourceLocked        Symbol = "amqp:resource-locked"
	CondPreconditionFailed    Symbol = "amqp:precondition-failed"
	CondResourceDeleted       Symbol = "amqp:resource-deleted"
	CondIllegalState          Symbol = "amqp:illegal-state"
	CondFrameSizeTooSmall     Symbol = "amqp:frame-size-too-small"

	CondConnectionForced Symbol = "amqp:connection:forced"
	CondFramingError     Symbol = "amqp:connection:framing-error"

	CondWindowViolation  Symbol = "amqp:session:window-violation"
	CondErrantLink       Symbol = "amqp:session:errant-link"
	CondHandleInUse      Symbol = "amqp:session:handle-in-use"
	CondUnattachedHandle Symbol = "amqp:session:unattached-handle"

	CondDetachForced          Symbol = "amqp:link:detach-forced"
	CondTransferLimitExceeded Symbol = "amqp:link:transfer-limit-exceeded"
	CondMessageSizeExceeded   Symbol = "amqp:link:message-size-exceeded"
	CondLinkRedirect          Symbol = "amqp:link:redirect"
	CondStolen                Symbol = "amqp:link:stolen"
)

func (e *Error) appendTo(b []byte) ([]byte, error) {
	c := newComposite(b, typeError)
	c.field(e.Condition)
	c.optional(e.Description != "", e.Description)
	c.symbolMap(e.Info)
	return c.end()
}

func (f *fields) amqpError(dst **Error) {
	if !f.next() {
		return
	}
	e := &Error{}
	in := f.nested(typeError)
	textField(in, &e.Condition)
	textField(in, &e.Description)
	in.namedMap(&e.Info)
	if f.err = in.end(); f.err == nil {
		*dst = e
	}
}
