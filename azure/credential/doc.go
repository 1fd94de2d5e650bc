// Package credential holds what the adapters prove their identity with: connection strings and the shared access
// signatures made from them, managed identity for Azure, and the certificate authorities to trust.
//
// Connection strings and signatures are read and written with github.com/amenzhinsky/iothub/common, because it is plain
// code without a client around it and its signatures are known to be accepted by IoT Hub.
package credential
