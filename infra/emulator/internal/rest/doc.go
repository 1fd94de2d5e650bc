// Package rest is the HTTPS front end of a hub. For the service side it has the
// identity registry with modules and bulk operations, twins, queries, direct
// methods, jobs on many devices, feedback, statistics and the purging of
// cloud-to-device queues; for devices the sending of telemetry and the receiving
// of cloud-to-device messages, with a token or a client certificate.
//
// Paths, bodies and error codes are those of the IoT Hub service REST API
// (swagger iothubservice 2020-09-30 and 2021-04-12) and of the device REST API
// (IoT Hub docs: "IoT Hub device REST API"). What the emulator does not offer
// (file upload, import and export jobs, configurations, digital twins, Entra ID)
// is refused and says so.
//
// Kinder than the cloud: any api-version that is a date will do. Different in one
// thing: names of application properties that come as headers are in lower case,
// because net/http doesn't keep the case.
package rest
