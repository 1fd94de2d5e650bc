// Package servicebus sends to and receives from the queues and topics of a Service Bus namespace, in terms of
// [job.Message], with azservicebus underneath. Messages are received under a lock (peek-lock) and settled one by one.
//
// A connection string with UseDevelopmentEmulator=true reaches an emulator on any host and port, without TLS. All errors
// are of type [job.Error].
package servicebus
