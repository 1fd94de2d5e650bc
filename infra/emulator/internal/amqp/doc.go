// Package amqp is the AMQP 1.0 codec of the emulator: it turns bytes into
// values, performatives, frames and messages, and back. It holds no sockets, no
// goroutines and no clocks, so that everything in it can be tested with byte
// slices alone.
//
// Decoders treat their input as hostile: they never panic, they keep no
// reference to it (frame payloads excepted, see [Frame]), and what they allocate
// is bounded by its length. Every decoding error wraps [ErrMalformed].
//
// Section numbers (§) name clauses of the OASIS AMQP 1.0 specification:
// part 1 types, part 2 transport, part 3 messaging, part 5 security.
package amqp
