// Package eventhubs reads live device messages from a hub's built-in endpoint, which is compatible with Event Hubs, with
// azeventhubs underneath. It is for watching: nothing is settled and no position is stored.
//
// A connection string with UseDevelopmentEmulator=true reaches an emulator on any host and port, without TLS. All errors
// are of type [job.Error].
package eventhubs
