// Package role is the frame that the manager, scheduler and solver processes share: a Temporal client that waits for
// its server, a group of Temporal workers that start and stop together, an HTTP server, and health checks.
package role
