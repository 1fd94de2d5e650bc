// Package devicejobs runs the jobs of a hub: a direct method or a twin update on
// every device that a condition selects, at a time (IoT Hub docs: "Schedule jobs
// on multiple devices"; swagger iothubservice 2020-09-30, /jobs/v2).
//
// # Durability
//
// A job that was accepted is in the store, and so is what became of it on each
// device. After a restart a job goes on where it was. A device that had been
// given a method whose answer was still awaited fails with
// ServiceUnavailable: nobody knows whether it did its work, and calling it again
// might do the work twice. A twin update is repeated, because it gives the same
// twin.
//
// Kinder than the cloud: jobs start at once when they are due, and devices take
// part without the throttle on the work of jobs. Calls that the hub throttles are
// repeated until the job's time is over.
package devicejobs
