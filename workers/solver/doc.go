// Package solver is the role that solves jobs: it takes them from the topic, or over HTTP from a Dapr sidecar, starts a
// Solve workflow for each, and runs that workflow, its steps and the solvers' device connections.
package solver
