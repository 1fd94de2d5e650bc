// Package sas checks shared access signatures: the tokens with which devices
// and services prove to an IoT Hub, a Service Bus namespace or an Event Hubs
// namespace that they hold a key, without showing the key.
//
// A token reads
//
//	SharedAccessSignature sr=<resource>&sig=<signature>&se=<expiry>&skn=<policy>
//
// and signs the text "<sr>\n<se>", both taken as they stand in the token, with
// HMAC-SHA256. The order of the parameters is not fixed: the Node SDKs write
// sr, sig, skn, se and the Go SDKs sr, sig, se, skn.
//
// Sources: IoT Hub docs "Control access to IoT Hub by using shared access
// signatures"; azservicebus v1.11 internal/sas/sas.go; azure-iot-sdk-node
// common/core/src/shared_access_signature.ts; azure-iot-sdk-csharp
// SharedAccessSignatureBuilder.cs; amenzhinsky/iothub v0.9.1 common/sas.go.
//
// No error of this package contains any part of a token or of a key.
package sas
