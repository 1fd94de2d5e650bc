package hub

import (
	"encoding/json"
	"fmt"
)

// Operation is a kind of operation that the cloud meters by itself (IoT Hub
// docs: "IoT Hub quotas and throttling").
type Operation uint8

const (
	OpConnect    Operation = iota // a device opens a connection
	OpD2C                         // device-to-cloud message
	OpC2D                         // cloud-to-device message
	OpC2DReceive                  // receive over HTTPS
	OpRegistry                    // read, create, update or delete an identity
	OpMethod                      // direct method
	OpTwinRead                    // either side
	OpTwinUpdate                  // either side
	OpQuery                       // one page
	OpJob                         // create, list, cancel

	// NumOperations is how many there are.
	NumOperations
)

var operationNames = [NumOperations]string{
	OpConnect:    "connect",
	OpD2C:        "d2c",
	OpC2D:        "c2d",
	OpC2DReceive: "c2d-receive",
	OpRegistry:   "registry",
	OpMethod:     "method",
	OpTwinRead:   "twin-read",
	OpTwinUpdate: "twin-update",
	OpQuery:      "query",
	OpJob:        "job",
}

// String returns the name under which people select the operation.
func (op Operation) String() string {
	if op < NumOperations {
		return operationNames[op]
	}
	return fmt.Sprintf("operation %d", uint8(op))
}

// Gate stands between the hub and what is asked of it: the limits of the cloud,
// and faults that a test wants. Its methods must not block, because the hub may
// hold locks.
type Gate interface {
	// Admit is asked before the hub begins an operation, and returns an *Error
	// to refuse it. bytes is the size of the message or document, 0 where there
	// is none.
	Admit(op Operation, t Target, bytes int) error
	// AdmitAll is Admit for a batch, of which all is admitted or nothing.
	AdmitAll(op Operation, parts []Part) error
	// Repeat reports whether a message is to come twice: one from a device is
	// then stored twice (OpD2C), and one for a device is delivered once more
	// after it was completed (OpC2D).
	Repeat(op Operation, t Target) bool
}

// Part is one message of a batch, or one identity of a bulk operation.
type Part struct {
	Target
	Bytes int
}

// Meter counts what operations answer.
type Meter interface {
	// Meter is told the size of what an operation that was admitted has
	// answered: the twin, the page of a query, the response of a direct method.
	// It must not block.
	Meter(op Operation, t Target, bytes int)
}

// Gates are several gates, one behind the other.
type Gates []Gate

// Admit implements Gate. The first gate that refuses decides.
func (gs Gates) Admit(op Operation, t Target, bytes int) error {
	for _, g := range gs {
		if err := g.Admit(op, t, bytes); err != nil {
			return err
		}
	}
	return nil
}

// AdmitAll implements Gate. The first gate that refuses decides.
func (gs Gates) AdmitAll(op Operation, parts []Part) error {
	for _, g := range gs {
		if err := g.AdmitAll(op, parts); err != nil {
			return err
		}
	}
	return nil
}

// Repeat implements Gate.
func (gs Gates) Repeat(op Operation, t Target) bool {
	for _, g := range gs {
		if g.Repeat(op, t) {
			return true
		}
	}
	return false
}

// Admit asks the gate, for operations that are built on those of the hub: jobs.
func (h *Hub) Admit(op Operation, t Target, bytes int) error { return h.admit(op, t, bytes) }

// MeterJSON tells the meter, if there is one, the size of an answer in JSON.
func (h *Hub) MeterJSON(op Operation, t Target, answer any) {
	if h.opts.Meter == nil {
		return
	}
	if text, err := json.Marshal(answer); err == nil {
		h.meter(op, t, len(text))
	}
}

// admit asks the gate, if there is one.
func (h *Hub) admit(op Operation, t Target, bytes int) error {
	if h.opts.Gate == nil {
		return nil
	}
	return h.opts.Gate.Admit(op, t, bytes)
}

// admitAll asks the gate, if there is one.
func (h *Hub) admitAll(op Operation, parts []Part) error {
	if h.opts.Gate == nil {
		return nil
	}
	return h.opts.Gate.AdmitAll(op, parts)
}

// meter tells the meter, if there is one, the size of an answer.
func (h *Hub) meter(op Operation, t Target, bytes int) {
	if h.opts.Meter != nil {
		h.opts.Meter.Meter(op, t, bytes)
	}
}

// repeat asks the gate whether a message is to come twice.
func (h *Hub) repeat(op Operation, t Target) bool {
	return h.opts.Gate != nil && h.opts.Gate.Repeat(op, t)
}
