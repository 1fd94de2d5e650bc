// Package servicebus sends to and receives from the queues and topics of a Service Bus namespace, in terms of
// [job.Message], with azservicebus underneath. Messages are received under a lock (peek-lock) and settled one by one, or
// browsed without a lock. What was dead-lettered can be taken by its number and sent again as a copy.
//
// A connection string with UseDevelopmentEmulator=true reaches an emulator on any host and port, without TLS. All errors
// are of type [job.Error].
package servicebus
