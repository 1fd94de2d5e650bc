// Package amqpserver is the server side of AMQP 1.0: connections, SASL, sessions,
// links, credit and settlement. What links lead to is not its business: a
// [Handler] answers attaches with a [Source] or a [Target], and the package
// moves messages between those and the wire.
//
// # Goroutines and locks
//
// A connection has a reading and a writing goroutine, and one more for each link
// on which it sends. The reading goroutine handles all frames, and calls
// Target.Deliver and Settler.Settle, which therefore must not block. All state
// of a session and its links is under session.mu; under it, frames are only put
// into the outbox, which never blocks. Lock order: session.mu, then outbox.mu.
// No method of a Source, Target, Settler or Handler is called with a lock held.
//
// # Bounds
//
// Who has shown no token must not exhaust the server. A connection has a limited
// time to open, and a limited number of sessions, links and bytes of incomplete
// messages; nothing more is read from a peer that doesn't read its answers. What
// sources and targets keep is theirs to bound.
package amqpserver
