// Package activities is what hubjobs does to the outside world, one file a capability: device identities, the job
// topic, cloud-to-device messages, messages that can't be delivered, and a device's host, which holds the device's
// connection and runs its steps.
//
// The package knows neither Azure nor HTTP. It declares the small interfaces that it needs, and the workers hand it
// what fits. Every activity may run more than once with the same input and then finds its work done: identities that
// exist, message IDs that the receiver has seen, heartbeat details that say how far the last attempt came.
package activities
