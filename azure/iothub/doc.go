// Package iothub is a client of an IoT Hub's service side: the identity registry, queries, statistics and direct methods
// over HTTPS, cloud-to-device messages and their delivery feedback over AMQP.
//
// IoT Hub has no data-plane SDK for Go from its vendor, so this is a thin client on azcore and go-amqp. It authenticates
// with a service connection string or, in Azure, with a managed identity. All errors are of type [job.Error].
package iothub
