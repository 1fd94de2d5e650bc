// Package rest is the HTTPS front end of a hub: the identity registry, device
// statistics, queries, direct methods, purging of cloud-to-device queues, the
// reading of twins, and telemetry that devices send over HTTP.
//
// Paths, bodies and error codes are those of the IoT Hub service REST API
// (swagger iothubservice 2020-09-30 and 2021-04-12) and of the device REST API
// (IoT Hub docs: "IoT Hub device REST API"). What the emulator does not offer
// is refused with 501 and says so.
//
// Kinder than the cloud: nothing is throttled, and any api-version that is a
// date will do.
package rest
